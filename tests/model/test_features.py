"""Log-mels are those of transformers' extractor, and positions are counted as the release counts them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from model.features import FeatureExtractor
from tests.model.checkpoints import OTHER_SIZES, RELEASE_LIKE, Shape
from tests.model.conftest import Case

SHAPES = pytest.mark.parametrize("shape", [RELEASE_LIKE, OTHER_SIZES], ids=["release like", "other sizes"])


def assert_close(mels: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal but for the last bits of a float32 Fourier transform, which the logarithm of a faint bin magnifies."""
    assert mels.shape == expected.shape, name
    difference = np.abs(mels - expected)
    assert difference.max() < 1e-4, name
    assert np.quantile(difference, 0.9999) < 1e-5, name


@pytest.fixture(scope="module")
def built(case: Callable[..., Case]) -> Callable[[Shape], tuple[Case, FeatureExtractor]]:
    def build(shape: Shape) -> tuple[Case, FeatureExtractor]:
        made = case(shape)
        return made, FeatureExtractor.from_checkpoint(made.path, made.speech_tokenizer)

    return build


def windows(waveform: np.ndarray, size: int) -> list[np.ndarray]:
    return [waveform[start : start + size] for start in range(0, len(waveform), size)]


@SHAPES
def test_padded_windows_are_transformers(built: Callable[[Shape], tuple[Case, FeatureExtractor]], shape: Shape) -> None:
    """Joined and trimmed windows: a window's last frame, repeated, gives the padded whole."""
    made, extractor = built(shape)
    original = WhisperFeatureExtractor.from_pretrained(made.path / "whisper-large-v3")
    for name, waveform in made.recordings.items():
        features = extractor(waveform)
        mels = features["whisper_mels"]
        assert mels.dtype == np.float32
        start = 0
        for window in windows(waveform, extractor.window_samples):
            expected = original(window, sampling_rate=16000, return_tensors="np").input_features[0].T
            # From the first frame on whose 400 samples are padding alone, all frames are alike.
            stop = start + min(len(expected), -(-(len(window) + 200) // 160) + 1)
            whole = np.concatenate([mels[start:stop], np.repeat(mels[stop - 1 : stop], len(expected), axis=0)])
            assert_close(whole[: len(expected)], expected, name)
            start = stop
        assert start == len(mels), name


@SHAPES
def test_speech_windows_are_transformers(built: Callable[[Shape], tuple[Case, FeatureExtractor]], shape: Shape) -> None:
    """Padded no further than to the position that a window ends in."""
    made, extractor = built(shape)
    assert made.speech_tokenizer is not None
    original = WhisperFeatureExtractor.from_pretrained(made.speech_tokenizer)
    for name, waveform in made.recordings.items():
        expected = [
            original(
                window, sampling_rate=16000, padding="longest", pad_to_multiple_of=1280, return_tensors="np"
            ).input_features[0]
            for window in windows(waveform, extractor.window_samples)
        ]
        mels = extractor(waveform)["speech_mels"]
        assert mels.dtype == np.float32
        assert_close(mels, np.concatenate(expected, axis=1).T, name)


@SHAPES
def test_sizes_come_from_the_checkpoint(built: Callable[[Shape], tuple[Case, FeatureExtractor]], shape: Shape) -> None:
    made, extractor = built(shape)
    assert extractor.sampling_rate == 16000
    assert extractor.window_samples == 16000 * shape.window_seconds
    for name, waveform in made.recordings.items():
        features = extractor(waveform)
        assert features.keys() == {"whisper_mels", "speech_mels", "window_samples"}
        lengths = [len(window) for window in windows(waveform, extractor.window_samples)]
        assert features["window_samples"].tolist() == lengths, name
        assert features["window_samples"].dtype == np.int64
        assert features["whisper_mels"].shape[1] == shape.mel_bins
        assert features["speech_mels"].shape == (8 * extractor.positions(len(waveform)), shape.speech_mel_bins), name


@pytest.mark.parametrize(
    ("samples", "positions"),
    [
        (1, 1),
        (1279, 1),
        (1280, 1),
        (1281, 2),
        (479_840, 375),  # 29.99 s
        (480_000, 375),
        (480_160, 376),  # 30.01 s: one more for the second window's 160 samples
        (1_120_000, 875),  # 70 s
    ],
)
def test_positions(built: Callable[[Shape], tuple[Case, FeatureExtractor]], samples: int, positions: int) -> None:
    made, extractor = built(RELEASE_LIKE)
    assert extractor.positions(samples) == positions == made.reference.positions(samples)


@pytest.mark.parametrize("samples", [1, 159_999, 160_000, 160_001, 373_333])
def test_positions_of_shorter_windows(built: Callable[[Shape], tuple[Case, FeatureExtractor]], samples: int) -> None:
    made, extractor = built(OTHER_SIZES)
    assert extractor.positions(samples) == made.reference.positions(samples)


def test_without_speech_tokens(built: Callable[[Shape], tuple[Case, FeatureExtractor]]) -> None:
    made, extractor = built(RELEASE_LIKE)
    waveform = made.recordings["5 s"]
    features = FeatureExtractor.from_checkpoint(made.path, None)(waveform)
    assert features.keys() == {"whisper_mels", "window_samples"}
    np.testing.assert_array_equal(features["whisper_mels"], extractor(waveform)["whisper_mels"])


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.zeros((2, 100), np.float32)], ids=["none", "stereo"])
def test_no_waveform(built: Callable[[Shape], tuple[Case, FeatureExtractor]], waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="waveform"):
        built(RELEASE_LIKE)[1](waveform)


def test_no_front_end(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match=r"preprocessor_config\.json"):
        FeatureExtractor.from_checkpoint(tmp_path, None)
