"""Waveform to log-mel: what the two audio encoders of Kimi-Audio read, and the prompt positions a recording takes.

Numpy alone, so that a worker process that computes features need not import torch. The numbers are those of
transformers' ``WhisperFeatureExtractor`` (a periodic Hann window, reflected edges, a Slaney mel scale, the logarithm
floored eight decades below the loudest bin).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

ENCODER_STRIDE: Final = 2  # mel frames an encoder frame spans: the second convolution's stride, in both encoders
FRAMES_JOINED: Final = 4  # encoder frames a prompt position spans
FRAMES_PER_POSITION: Final = ENCODER_STRIDE * FRAMES_JOINED
LOG_FLOOR: Final = 1e-10
DYNAMIC_RANGE: Final = 8.0  # decades kept below the loudest bin

WHISPER_FOLDER: Final = "whisper-large-v3"
PREPROCESSOR_FILE: Final = "preprocessor_config.json"


def _hertz_to_mel(hertz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Slaney's scale: linear to 1 kHz at 3 mel per 200 Hz, logarithmic above with 27 mel per factor of 6.4."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4))


def _mel_to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


@dataclass(frozen=True)
class LogMel:
    """A log-mel front end, as ``preprocessor_config.json`` has it (hop, n_fft in samples; chunk_length in seconds)."""

    feature_size: int
    sampling_rate: int = 16_000
    hop_length: int = 160
    n_fft: int = 400
    chunk_length: int = 30

    @classmethod
    def from_file(cls, path: Path) -> "LogMel":
        """Read a ``preprocessor_config.json``; raises OSError, ValueError or KeyError where it is not one."""
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {key: int(config[key]) for key in cls.__dataclass_fields__ if key in config}
        if "feature_size" not in known:
            raise ValueError(f"{path} has no 'feature_size'")
        return cls(**known)

    @property
    def window_samples(self) -> int:
        """Samples of the padded window, 480,000 in the release."""
        return self.chunk_length * self.sampling_rate

    def frames(self, num_samples: int, padded_samples: int) -> int:
        """Frames of ``num_samples`` padded to ``padded_samples``, up to and with the first that sees padding alone."""
        first_silent = -(-(num_samples + self.n_fft // 2) // self.hop_length)
        return min(padded_samples // self.hop_length, first_silent + 1)

    @cached_property
    def _filters(self) -> Array:
        """Triangular mel filters of unit area, [n_fft // 2 + 1, feature_size]."""
        nyquist = self.sampling_rate / 2
        bins = np.linspace(0, nyquist, self.n_fft // 2 + 1)
        top_mel = _hertz_to_mel(np.array(nyquist))
        edges = _mel_to_hertz(np.linspace(0, top_mel, self.feature_size + 2))
        rising = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
        falling = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
        area = 2 / (edges[2:] - edges[:-2])
        filters: Array = (np.maximum(0, np.minimum(rising, falling)) * area).astype(np.float32)
        return filters

    @cached_property
    def _hann(self) -> Array:
        return np.hanning(self.n_fft + 1)[:-1].astype(np.float32)

    def __call__(self, waveform: Array, padded_samples: int) -> Array:
        """Log-mel of ``waveform`` [n] as if zero-padded to ``padded_samples``: time-major frames [f, feature_size].

        Frames that see padding alone are all alike, so the result ends with the first of them: repeating the last frame
        gives all ``padded_samples // hop_length``.
        """
        edge = self.n_fft // 2
        frames = self.frames(len(waveform), padded_samples)
        padded = np.pad(waveform.astype(np.float32, copy=False), (0, padded_samples - len(waveform)))
        padded = np.pad(padded, edge, mode="reflect")
        view = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length][:frames]
        power = np.abs(np.fft.rfft(view * self._hann)) ** 2
        log_mel: Array = np.log10(np.maximum(power.astype(np.float32) @ self._filters, LOG_FLOOR))
        log_mel = np.maximum(log_mel, log_mel.max() - DYNAMIC_RANGE)
        scaled: Array = ((log_mel + 4) / 4).astype(np.float32)
        return scaled


@dataclass(frozen=True)
class FeatureExtractor:
    """The features of a recording, ready for vLLM: ``multi_modal_data={"audio": extractor(waveform)}``."""

    whisper: LogMel
    speech: LogMel | None  # the speech tokenizer's front end; None where speech tokens are off

    @classmethod
    def from_checkpoint(cls, model_dir: Path, speech_tokenizer_dir: Path | None) -> "FeatureExtractor":
        """Read both front ends; raises OSError, ValueError where a ``preprocessor_config.json`` is missing or wrong."""
        whisper = LogMel.from_file(model_dir / WHISPER_FOLDER / PREPROCESSOR_FILE)
        speech = LogMel.from_file(speech_tokenizer_dir / PREPROCESSOR_FILE) if speech_tokenizer_dir else None
        if speech and (speech.sampling_rate, speech.hop_length) != (whisper.sampling_rate, whisper.hop_length):
            raise ValueError(f"the speech tokenizer's frames ({speech}) do not line up with Whisper's ({whisper})")
        return cls(whisper, speech)

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms that are taken."""
        return self.whisper.sampling_rate

    @property
    def window_samples(self) -> int:
        """Samples that are encoded together; longer recordings are cut into windows of this length."""
        return self.whisper.window_samples

    @property
    def samples_per_position(self) -> int:
        """Samples that a prompt position stands for: 1,280, 12.5 positions a second."""
        return FRAMES_PER_POSITION * self.whisper.hop_length

    def positions(self, num_samples: int) -> int:
        """Prompt positions that a recording of ``num_samples`` takes, all its windows together."""
        whole, rest = divmod(num_samples, self.window_samples)
        return whole * -(-self.window_samples // self.samples_per_position) + -(-rest // self.samples_per_position)

    def max_samples(self, positions: int) -> int:
        """The longest recording, in samples, that takes no more than ``positions``."""
        per_window = self.positions(self.window_samples)
        whole, rest = divmod(positions, per_window)
        return whole * self.window_samples + rest * self.samples_per_position

    def __call__(self, waveform: Array) -> dict[str, npt.NDArray[Any]]:
        """Features of a mono ``waveform`` [n] (float32, -1 to 1) at :attr:`sampling_rate`; raises ValueError if n is 0.

        Returns ``whisper_mels`` [frames, whisper.feature_size], the trimmed windows joined along time;
        ``window_samples`` [windows], int64, the length of each; and, with speech tokens, ``speech_mels``
        [8 x positions, speech.feature_size].
        """
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"a waveform is one channel of at least one sample, not of shape {waveform.shape}")
        windows = [waveform[i : i + self.window_samples] for i in range(0, len(waveform), self.window_samples)]
        features: dict[str, npt.NDArray[Any]] = {
            "whisper_mels": np.concatenate([self.whisper(window, self.window_samples) for window in windows]),
            "window_samples": np.array([len(window) for window in windows], dtype=np.int64),
        }
        if self.speech:
            features["speech_mels"] = np.concatenate([self._speech_mels(self.speech, window) for window in windows])
        return features

    def _speech_mels(self, speech: LogMel, window: Array) -> Array:
        """[8 x positions, feature_size]: padded no further than the position the window ends in."""
        frames = self.positions(len(window)) * FRAMES_PER_POSITION
        mels = speech(window, frames * speech.hop_length)
        return np.concatenate([mels, np.repeat(mels[-1:], frames - len(mels), axis=0)])
