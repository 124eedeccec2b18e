"""Shards on disk: speech, Whisper's rows, speech codes; made one stage at a time, so that training can start early.

A shard `0007` is `audio/0007.npz` (int16 samples end to end, lengths, texts, voices), `whisper/0007.npy` (float16 rows
of the encoder, 4 a position) and `codes/0007.npy` (int16, 1 a position). Every file appears by a rename, so one that
exists is complete, and every stage skips what exists: stopping and starting again loses at most one shard's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from model.features import FRAMES_JOINED, FeatureExtractor, LogMel

from .encoder import WhisperEncoder
from .samples import Sample
from .voices import RATE

SHARD: Final = 200  # samples
MELS: Final = 80
THIN: Final = 16  # silent frames that one frame stands for
EXACT_EVERY: Final = 16  # every so many samples one is encoded exactly
EXTRACTOR: Final = FeatureExtractor(LogMel(MELS), LogMel(MELS))


@dataclass(frozen=True)
class Shard:
    """What is known of one shard; rows of all its samples stand end to end."""

    audio: npt.NDArray[np.int16]
    lengths: npt.NDArray[np.int64]
    texts: list[str]
    voices: list[str]

    @property
    def positions(self) -> list[int]:
        """Audio positions of every sample."""
        return [EXTRACTOR.positions(int(n)) for n in self.lengths]

    def waveforms(self) -> list[npt.NDArray[np.float32]]:
        """Every sample as the service would decode it from a 16-bit file."""
        parts = np.split(self.audio, np.cumsum(self.lengths)[:-1])
        return [part.astype(np.float32) / np.float32(32768) for part in parts]


def write_atomically(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write beside `path`, then rename: a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    save(part)
    part.rename(path)


def save_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write the speech of a shard."""
    audio = [(s.audio * 32767).clip(-32768, 32767).astype(np.int16) for s in samples]
    fields: dict[str, Any] = {
        "audio": np.concatenate(audio),
        "lengths": np.array([len(a) for a in audio], np.int64),
        "texts": np.array([s.text for s in samples]),
        "voices": np.array([s.voice for s in samples]),
    }

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **fields)

    write_atomically(path, save)


def load_shard(path: Path) -> Shard:
    """Read the speech of a shard."""
    with np.load(path) as data:
        return Shard(data["audio"], data["lengths"], data["texts"].tolist(), data["voices"].tolist())


def speech_mels(waveform: npt.NDArray[np.float32]) -> torch.Tensor:
    """What the speech tokenizer reads: [mels, 8 x positions]."""
    return torch.from_numpy(EXTRACTOR(waveform)["speech_mels"].T.copy())


@cache
def _encoder(folder: Path) -> WhisperEncoder:
    return WhisperEncoder(folder)


def whisper_rows(folder: Path, waveform: npt.NDArray[np.float32], thin: int = 1) -> npt.NDArray[np.float16]:
    """The encoder's rows of one clip: [4 x positions, d_model]."""
    mel = EXTRACTOR.whisper(waveform, EXTRACTOR.window_samples)
    frames = EXTRACTOR.window_samples // EXTRACTOR.whisper.hop_length
    mel = np.concatenate([mel, np.repeat(mel[-1:], frames - len(mel), axis=0)])
    rows = _encoder(folder).forward(
        torch.from_numpy(mel.T.copy()), FRAMES_JOINED * EXTRACTOR.positions(len(waveform)), thin
    )
    return rows.numpy().astype(np.float16)


def make_whisper(folder: Path, shard: Shard, path: Path, exact: bool = False) -> None:
    """Encode a shard."""
    rows = [
        whisper_rows(folder, waveform, 1 if exact or i % EXACT_EVERY == 0 else THIN)
        for i, waveform in enumerate(shard.waveforms())
    ]
    write_atomically(path, lambda part: save_array(part, np.concatenate(rows)))


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """`np.save` without its habit of appending a suffix."""
    with path.open("wb") as file:
        np.save(file, array)


def shard_name(index: int) -> str:
    """Shards sort by name."""
    return f"{index:04d}"


@dataclass
class Item:
    """One sample, ready for the decoder."""

    whisper: npt.NDArray[np.float16]  # [positions, 4 x d_model]
    codes: npt.NDArray[np.int16]  # [positions]
    text: str
    voice: str

    @property
    def positions(self) -> int:
        """Audio positions."""
        return len(self.codes)


def load_items(root: Path, name: str) -> list[Item]:
    """The samples of a finished shard; the rows stay on disk until they are needed (memory-mapped)."""
    shard = load_shard(root / "audio" / f"{name}.npz")
    whisper = np.load(root / "whisper" / f"{name}.npy", mmap_mode="r")
    codes = np.load(root / "codes" / f"{name}.npy")
    rows = whisper.reshape(-1, FRAMES_JOINED * whisper.shape[1])
    ends = np.cumsum(shard.positions)
    items = []
    for end, n, text, voice in zip(ends, shard.positions, shard.texts, shard.voices, strict=True):
        items.append(Item(rows[end - n : end], codes[end - n : end], text, voice))
    return items


def seconds(shard: Shard) -> float:
    """Seconds of audio in a shard."""
    return float(shard.lengths.sum()) / RATE
