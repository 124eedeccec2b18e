"""Samples: one utterance, or a few of the same voice with pauses between, and the words of all of them.

Half of the encoder's windows would be nearly empty if every sample were one utterance; joined ones also teach to go on
after a pause. Sample number i is always the same sample, so that a shard can be made again on its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .augment import augment, silent
from .texts import Piece
from .voices import HELD_OUT, RATE, VOICES, Manner, random_manner, speak

Array = npt.NDArray[np.float32]
MAX_SECONDS: Final = 28.5
SILENT: Final = 0.02  # share of samples in which nobody speaks
KINDS: Final = {"single": 0.60, "some": 0.28, "many": 0.12}
SECONDS_PER_WORD: Final = 0.42  # to guess how many pieces fit


@dataclass(frozen=True)
class Sample:
    """A recording and its words."""

    audio: Array  # [n] at 16 kHz
    text: str
    voice: str


def _pause(low: float, high: float, r: random.Random) -> Array:
    return np.zeros(int(r.uniform(low, high) * RATE), np.float32)


def _pieces(texts: list[Piece], r: random.Random) -> list[Piece]:
    kind = r.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "single":
        return [r.choice(texts)]
    goal = r.uniform(4, 12) if kind == "some" else r.uniform(12, 26)
    chosen: list[Piece] = []
    seconds = 0.0
    while seconds < goal and len(chosen) < 9:
        chosen.append(r.choice(texts))
        seconds += 0.6 + SECONDS_PER_WORD * len(chosen[-1].written.split())
    return chosen


def training_sample(texts: list[Piece], index: int, seed: int) -> Sample:
    """Sample number `index` of the training set."""
    r = random.Random(f"{seed}/{index}")
    if r.random() < SILENT:
        return Sample(silent(r.uniform(0.2, 6), r), "", "none")
    manner = random_manner(r)
    audio = [_pause(0, 0.6, r)]
    words: list[str] = []
    length = len(audio[0])
    for piece in _pieces(texts, r):
        spoken = speak(piece.spoken, manner, r.getrandbits(30))
        pause = _pause(0.05, 0.9, r)
        if not len(spoken) or length + len(spoken) + len(pause) > MAX_SECONDS * RATE:
            continue
        audio += [spoken, pause]
        words.append(piece.written)
        length += len(spoken) + len(pause)
    if not words:
        return Sample(silent(1.0, r), "", "none")
    return Sample(augment(np.concatenate(audio), r), " ".join(words), manner.voice)


def clean_sample(texts: list[Piece], index: int, seed: int, held_out: bool) -> Sample:
    """A clean sample: unseen text, natural tempo and pitch, in a training voice or in the held-out one."""
    r = random.Random(f"test/{seed}/{index}")
    voice = HELD_OUT if held_out else r.choices(list(VOICES), list(VOICES.values()))[0]
    piece = texts[index % len(texts)]
    edge = np.zeros(RATE // 5, np.float32)
    return Sample(np.concatenate((edge, speak(piece.spoken, Manner(voice)), edge)), piece.written, voice)
