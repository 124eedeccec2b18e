"""Bytes to a mono waveform: libsndfile reads what it can, FFmpeg (PyAV) the rest, soxr resamples.

The bytes come from strangers. Rate, channels and length are bounded before memory is taken for them, and a header's
word on length only ever refuses: what is counted is what has been decoded. Runs in a process of
:mod:`app.audio.workers`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Array = npt.NDArray[np.float32]

BLOCK_FRAMES: Final = 65_536
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz: slower holds no speech, faster no microphone records
FULL_SCALE_LIMIT: Final = 16.0  # 24 dB over full scale; more is integers that were never divided, or noise
TRUNCATION_SLACK: Final = (1.0, 0.02)  # seconds and share that a header may promise beyond what is there

# Demuxers for recordings only: FFmpeg also reads playlists and scripts that make it open other files and addresses.
CONTAINERS: Final = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,matroska,mov,mp3,mpeg,mpegts,mpc,mpc8,mxf,"
    "nut,ogg,oma,rm,spx,tak,truehd,tta,voc,w64,wav,wv"
)
# Of these, a track's length is written down; of others it is FFmpeg's guess from the bit rate.
LENGTH_DECLARED: Final = {"mov,mp4,m4a,3gp,3g2,mj2", "flac", "caf", "aiff", "w64", "tta", "wv", "ape"}


class AudioError(Exception):
    """A recording that cannot be transcribed: a code, and a sentence for whoever sent it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Recording:
    """``waveform`` [n], float32, mono at the rate asked for; ``duration`` in seconds, of the original."""

    waveform: Array
    duration: float


@dataclass(frozen=True)
class _Track:
    """An audio track: Hz, channels, the seconds its header promises (or None), blocks of [frames, channels]."""

    rate: int
    channels: int
    promised: float | None
    blocks: Iterator[Array]


def decode(file: BinaryIO, sampling_rate: int, max_seconds: float, max_channels: int) -> Recording:
    """Decode ``file``, an audio file or a video's sound track, to mono at ``sampling_rate`` Hz.

    Raises :class:`AudioError` when it is not a sound recording, is damaged or cut off, has samples that are not
    numbers, or is longer than ``max_seconds`` or wider than ``max_channels``.
    """
    if not file.read(1):
        raise AudioError("empty_file", "The file is empty (0 bytes).")
    file.seek(0)
    track = _open_soundfile(file) or _open_av(file)
    if not MIN_RATE <= track.rate <= MAX_RATE:
        raise AudioError(
            "unsupported_sample_rate", f"A sample rate of {track.rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz."
        )
    if not 1 <= track.channels <= max_channels:
        raise AudioError("unsupported_channels", f"{track.channels} channels; a recording has 1 to {max_channels}.")
    if track.promised is not None and track.promised > max_seconds:
        raise too_long(max_seconds)

    # soxr keeps its state across blocks, so block edges are not heard.
    resampler = soxr.ResampleStream(track.rate, sampling_rate, 1, dtype="float32")
    pieces: list[Array] = []
    frames = 0
    for block in track.blocks:
        frames += len(block)
        if frames > max_seconds * track.rate:
            raise too_long(max_seconds)
        pieces.append(resampler.resample_chunk(_mono(block)))
    pieces.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    waveform = np.concatenate(pieces)
    duration = frames / track.rate
    _check_complete(track.promised, duration)
    if not len(waveform):
        raise AudioError("empty_audio", "The recording holds no samples.")
    return Recording(waveform, duration)


def too_long(max_seconds: float) -> AudioError:
    """The refusal of a recording that is longer than ``max_seconds``."""
    return AudioError(
        "audio_too_long", f"The recording is longer than {max_seconds:g} seconds, the most that is taken."
    )


def _mono(block: Array) -> Array:
    """[frames, channels] to [frames]; refuses what no microphone records."""
    with np.errstate(over="ignore", invalid="ignore"):
        mono: Array = block.mean(axis=1, dtype=np.float32)
        peak = float(np.abs(block).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError("not_finite", "The recording has samples that are not finite numbers (NaN or infinity).")
    if peak > FULL_SCALE_LIMIT:
        raise AudioError(
            "out_of_range", f"Samples reach {peak:g}; full scale is 1. Divide integers by their full scale."
        )
    return mono


def _check_complete(promised: float | None, duration: float) -> None:
    seconds, share = TRUNCATION_SLACK
    if promised is not None and promised - duration > max(seconds, share * promised):
        raise _damaged(duration, f" of the {promised:.1f} s that its header promises")


def _damaged(duration: float, promise: str = "") -> AudioError:
    return AudioError(
        "truncated_audio", f"The recording is damaged or cut off: {duration:.1f} s{promise} can be decoded."
    )


def _open_soundfile(file: BinaryIO) -> _Track | None:
    """The track as libsndfile reads it; None when it does not know the format."""
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        file.seek(0)
        return None

    def blocks() -> Iterator[Array]:
        done = 0
        try:
            while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                done += len(block)
                yield block
        except soundfile.LibsndfileError:
            raise _damaged(done / sound.samplerate) from None

    return _Track(sound.samplerate, sound.channels, _soundfile_promise(sound, file), blocks())


def _soundfile_promise(sound: soundfile.SoundFile, file: BinaryIO) -> float | None:
    """Seconds that the header promises, None where it makes no promise."""
    if not sound.samplerate:
        return None
    if sound.format == "MP3":
        position = file.tell()
        file.seek(0)
        head = file.read(2**18)  # past an ID3 tag with a picture
        file.seek(position)
        if not any(tag in head for tag in (b"Xing", b"Info", b"VBRI")):
            return None  # then libsndfile's count of frames is a guess from the bit rate
    # libsndfile mends the size of a cut-off WAV's data and tells only its log. A writer that could not seek back leaves
    # 0 or a size near 2 or 4 GiB there, which promises nothing.
    mended = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    seconds = float(sound.frames / sound.samplerate)
    if mended and 0 < int(mended[1]) < 2**31 - 2**16 and int(mended[2]):
        seconds *= int(mended[1]) / int(mended[2])
    return seconds


def _open_av(file: BinaryIO) -> _Track:
    """The track as FFmpeg reads it; raises :class:`AudioError` when there is not exactly one."""
    try:
        container = av.open(file, "r", options={"format_whitelist": CONTAINERS})
    except Exception as error:  # whatever a demuxer raises is about a stranger's bytes
        raise _memory(error) or AudioError(
            "unsupported_format",
            "The file is not a sound recording that can be decoded (wav, flac, mp3, ogg, opus, m4a, mp4, webm and"
            " others are), or its beginning or end is missing.",
        ) from None
    streams = container.streams.audio
    if not streams:
        raise AudioError("no_audio_track", "The file has no audio track.")
    if len(streams) > 1:
        raise AudioError(
            "several_audio_tracks", f"The file has {len(streams)} audio tracks; send one (ffmpeg -map 0:a:0)."
        )
    stream = streams[0]
    rate, channels = stream.codec_context.sample_rate or 0, stream.codec_context.channels or 0

    def blocks() -> Iterator[Array]:
        done = 0
        try:
            to_float = av.AudioResampler(format="fltp")  # the layout and the rate stay
            for frame in container.decode(stream):
                if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                    raise AudioError("changing_format", "The recording changes its sample rate or channels midway.")
                for converted in to_float.resample(frame):
                    done += converted.samples
                    yield converted.to_ndarray().astype(np.float32, copy=False).T
        except AudioError:
            raise
        except Exception as error:  # as above
            raise _memory(error) or _damaged(done / max(rate, 1)) from None

    promised = None
    if container.format.name in LENGTH_DECLARED and stream.duration and stream.time_base:
        promised = float(stream.duration * stream.time_base)
    elif container.format.name == "matroska,webm" and container.duration and len(container.streams) == 1:
        promised = container.duration / 1e6  # microseconds, of the longest track
    return _Track(rate, channels, promised, blocks())


def _memory(error: Exception) -> Exception | None:
    """The error itself when memory ran out, which is for the worker to say."""
    return error if isinstance(error, MemoryError) else None
