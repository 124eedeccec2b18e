"""Decoding: every format comes out as the sound that went in, every bad file as its own error."""

import io
import resource
import socket
import time

import numpy as np
import pytest

from app.audio.decode import AudioError, Recording, decode
from tests.app.recordings import ENCODED, RATE, bad_recordings, encoded, sound, tone, video, wav_header

BAD = bad_recordings()


def run(data: bytes, max_seconds: float = 3600, max_channels: int = 8) -> Recording:
    return decode(io.BytesIO(data), RATE, max_seconds, max_channels)


def strongest(recording: Recording) -> float:
    """The frequency, in Hz, that holds the most energy."""
    spectrum = np.abs(np.fft.rfft(recording.waveform))
    return float(np.argmax(spectrum) * RATE / len(recording.waveform))


def loudness(recording: Recording) -> float:
    """The root mean square of its samples."""
    return float(np.sqrt(np.mean(recording.waveform**2)))


@pytest.mark.parametrize("name", ENCODED)
def test_what_ffmpeg_writes(name: str) -> None:
    recording = run(encoded(tone(2, ENCODED[name][2], hertz=1000), name))
    assert recording.duration == pytest.approx(2, abs=0.1)
    assert len(recording.waveform) == pytest.approx(recording.duration * RATE, abs=2)
    assert strongest(recording) == pytest.approx(1000, abs=2)
    assert recording.waveform.dtype == np.float32
    assert loudness(recording) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("W64", "PCM_16"),
    ],
)
def test_what_libsndfile_writes(kind: str, subtype: str) -> None:
    recording = run(sound(tone(2, hertz=1000), kind=kind, subtype=subtype))
    assert recording.duration == pytest.approx(2, abs=0.1)
    assert strongest(recording) == pytest.approx(1000, abs=2)
    assert loudness(recording) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_is_resampled(rate: int) -> None:
    recording = run(sound(tone(3, rate, hertz=1000), rate))
    assert len(recording.waveform) == pytest.approx(3 * RATE, abs=2)
    middle = slice(RATE // 2, 5 * RATE // 2)
    assert np.abs(recording.waveform - tone(3, hertz=1000)[: len(recording.waveform)])[middle].max() < 0.01


def test_the_models_own_rate_is_left_alone() -> None:
    samples = tone(1.23)
    assert np.array_equal(run(sound(samples, subtype="FLOAT")).waveform, samples)


def test_channels_are_averaged() -> None:
    left, right = tone(1, hertz=500), tone(1, hertz=2000)
    recording = run(sound(np.stack([left, right], axis=1), subtype="FLOAT"))
    assert np.allclose(recording.waveform, (left + right) / 2, atol=1e-6)


def test_a_videos_sound_track() -> None:
    recording = run(video(tracks=1))
    assert recording.duration == pytest.approx(1, abs=0.01)
    assert strongest(recording) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("samples", [1, 2, 159, RATE])
def test_silence_of_any_length_is_a_recording(samples: int) -> None:
    assert np.array_equal(run(sound(np.zeros(samples, np.float32))).waveform, np.zeros(samples, np.float32))


def test_a_wav_of_unknown_length_from_a_pipe_is_whole() -> None:
    wav = bytearray(wav_header(data=b"\1\0" * RATE))
    wav[40:44] = b"\xff\xff\xff\xff"
    assert run(bytes(wav)).duration == 1


def test_a_variable_bit_rate_mp3_without_a_length_is_whole() -> None:
    """Half silence, half noise: the length guessed from the bit rate is far off."""
    noise = np.random.default_rng(0).normal(0, 0.2, 10 * 44_100).clip(-1, 1).astype(np.float32)
    data = encoded(np.concatenate([np.zeros_like(noise), noise]), "mp3", write_xing="0", qscale="5")
    assert run(data).duration == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("name", BAD)
def test_bad_recordings_are_refused(name: str) -> None:
    with pytest.raises(AudioError) as caught:
        run(BAD[name])
    assert caught.value.code == name.partition(":")[0]
    assert caught.value.message.endswith((".", ")."))


def test_a_long_flac_is_refused_before_it_is_decoded() -> None:
    """Three hours of silence in about 2 MB would be 690 MB as float32."""
    data = BAD["audio_too_long"]
    assert len(data) < 4_000_000
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(AudioError, match="longer than 3600 seconds"):
        run(data)
    assert time.monotonic() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_header_that_hides_its_length_does_not_help() -> None:
    """The count of samples in a FLAC's header set to 0, unknown: what is decoded is counted."""
    flac = bytearray(sound(np.zeros(120 * RATE, np.int16), kind="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    with pytest.raises(AudioError) as caught:
        run(bytes(flac), max_seconds=60)
    assert caught.value.code == "audio_too_long"


def test_a_playlist_opens_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        with pytest.raises(AudioError):
            run(playlist.encode())
        with pytest.raises(TimeoutError):
            server.accept()


def test_noise_of_any_kind_is_an_audio_error_or_a_recording() -> None:
    """Good files with bytes changed at random: nothing but AudioError comes out."""
    rng = np.random.default_rng(1)
    originals = [encoded(tone(1, ENCODED[name][2]), name) for name in ENCODED] + [
        sound(tone(1)),
        sound(tone(1), kind="FLAC"),
    ]
    for original in originals:
        for _ in range(8):
            data = bytearray(original)
            for position in rng.integers(0, len(data), 30):
                data[position] = rng.integers(0, 256)
            try:
                run(bytes(data))
            except AudioError:
                continue
