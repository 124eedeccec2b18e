"""Recordings made for the tests: good ones in many formats, and the bad ones that a service meets."""

import io
import struct
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import av
import numpy as np
import numpy.typing as npt
import soundfile

RATE = 16_000

# Name to container, codec and rate, as PyAV writes them.
ENCODED = {
    "mp3": ("mp3", "libmp3lame", 44_100),
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "opus": ("ogg", "libopus", 48_000),
    "aac": ("adts", "aac", 44_100),
    "ts": ("mpegts", "aac", 44_100),
}


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> npt.NDArray[np.float32]:
    """A sine of half scale, [seconds x rate]."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound(samples: npt.NDArray[np.generic], rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """``samples`` [n] or [n, channels] as libsndfile writes them."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def encoded(samples: npt.NDArray[np.float32], name: str, **options: str) -> bytes:
    """``samples`` [n], at the rate of ``ENCODED[name]``, as FFmpeg writes them."""
    container_format, codec, rate = ENCODED[name]
    with NamedTemporaryFile() as file, av.open(file.name, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return Path(file.name).read_bytes()


def video(tracks: int) -> bytes:
    """A second of video with that many audio tracks."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 16
        picture.pix_fmt = "yuv420p"
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(tracks)]
        for _ in range(10):
            container.mux(picture.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(picture.encode(None))
        for stream in streams:
            frame = av.AudioFrame.from_ndarray((tone(1)[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return file.getvalue()


def wav_header(rate: int = RATE, channels: int = 1, data: bytes = b"\0\0" * 1600) -> bytes:
    """A 16-bit PCM WAV whose header says what it is told to."""
    width = 2 * channels
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * width) % 2**32, width, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _with_nan() -> npt.NDArray[np.float32]:
    samples = tone(1)
    samples[RATE // 2] = np.nan
    return samples


@cache
def bad_recordings() -> dict[str, bytes]:
    """The code of the error to the files that deserve it: ``code`` or ``code:what``."""
    mp3 = encoded(tone(20, 44_100), "mp3")
    faststart = encoded(tone(20, 44_100), "m4a", movflags="faststart")
    wav = sound(tone(20))
    flac = sound(tone(20) + np.random.default_rng(0).normal(0, 0.01, 20 * RATE).astype(np.float32), kind="FLAC")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    return {
        "empty_file": b"",
        "unsupported_format:text": b"This is not sound at all, whatever its name says.\n" * 40,
        "unsupported_format:zeros": bytes(4096),
        "unsupported_format:playlist": playlist.encode(),
        "unsupported_format:concat script": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "unsupported_format:m4a without its end": encoded(tone(5, 44_100), "m4a")[:-4000],
        "truncated_audio:mp3": mp3[: len(mp3) * 6 // 10],
        "truncated_audio:wav": wav[: len(wav) * 6 // 10],
        "truncated_audio:flac": flac[: len(flac) * 6 // 10],
        "truncated_audio:m4a": faststart[: len(faststart) * 6 // 10],
        "not_finite:nan": sound(_with_nan(), subtype="FLOAT"),
        "not_finite:infinity": sound(np.full(RATE, np.inf, np.float32), subtype="FLOAT"),
        "not_finite:beyond float32": sound(np.full(RATE, 1e300), subtype="DOUBLE"),
        "out_of_range": sound(tone(1) * 32767, subtype="FLOAT"),
        "empty_audio": sound(np.empty(0, np.float32)),
        "audio_too_long": sound(np.zeros(3 * 3600 * RATE, np.int16), kind="FLAC"),
        "no_audio_track": video(tracks=0),
        "several_audio_tracks": video(tracks=2),
        "unsupported_sample_rate:10 Hz": wav_header(rate=10),
        "unsupported_sample_rate:1 GHz": wav_header(rate=10**9),
        "unsupported_channels:64": wav_header(channels=64, data=bytes(12_800)),
    }
