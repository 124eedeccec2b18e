"""The stages that make data: texts, then shard by shard speech, Whisper's rows and speech codes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from . import dataset, speech_tokenizer
from .evaluate import ASTERISK
from .samples import clean_sample, training_sample
from .texts import Piece, load_texts, make_texts, save_texts

HELD_BACK = 1000  # pieces that no training sample uses: test sentences
SEED = 1
TEST_SETS = {"seen": (160, False), "held_out": (120, True)}  # name -> items, in the held-out voice?


def evaluation_sentences(transcripts: Path | None) -> list[str]:
    """What the evaluation sets say, as far as they are on this machine: no training text may hold it."""
    sentences: list[str] = []
    if ASTERISK.exists():
        with gzip.open(ASTERISK, "rt", errors="replace") as lines:
            sentences += [line.partition(":")[2].strip() for line in lines if not line.startswith(";")]
    if transcripts and transcripts.exists():
        sentences += [line.partition("\t")[2] for line in transcripts.read_text().splitlines()]
    return sentences + [part for text in sentences for part in re.split(r"[.!?]\s+", text)]


def texts(root: Path, count: int, transcripts: Path | None) -> None:
    """Write `texts.jsonl`; the last pieces are kept for tests."""
    path = root / "texts.jsonl"
    if not path.exists():
        save_texts(make_texts(count, SEED, evaluation_sentences(transcripts)), path)


def split(root: Path) -> tuple[list[Piece], list[Piece]]:
    """The pieces for training and those for tests; a test piece that training says too is dropped."""
    pieces = load_texts(root / "texts.jsonl")
    held_back = min(HELD_BACK, len(pieces) // 5)
    known = {p.written for p in pieces[:-held_back]}
    return pieces[:-held_back], [p for p in pieces[-held_back:] if p.written not in known]


def shards(root: Path, whisper: Path, numbers: range, size: int = dataset.SHARD) -> None:
    """Speech and Whisper's rows of the shards of these numbers."""
    training, _ = split(root)
    for index in numbers:
        name = dataset.shard_name(index)
        speech = root / "audio" / f"{name}.npz"
        if not speech.exists():
            samples = range(index * size, (index + 1) * size)
            dataset.save_shard(speech, [training_sample(training, i, SEED) for i in samples])
        rows = root / "whisper" / f"{name}.npy"
        if not rows.exists():
            dataset.make_whisper(whisper, dataset.load_shard(speech), rows)


def clean_sets(root: Path, whisper: Path, scale: float = 1.0) -> None:
    """The clean test sets in seen voices and in the held-out one."""
    _, pieces = split(root)
    for name, (count, held_out) in TEST_SETS.items():
        speech = root / "audio" / f"{name}.npz"
        if not speech.exists():
            count = max(2, int(count * scale))
            dataset.save_shard(speech, [clean_sample(pieces, i, SEED, held_out) for i in range(count)])
        rows = root / "whisper" / f"{name}.npy"
        if not rows.exists():
            dataset.make_whisper(whisper, dataset.load_shard(speech), rows, exact=True)


def codes(root: Path, tokenizer: Path) -> None:
    """Speech codes of every shard that has none yet."""
    model = speech_tokenizer.load(tokenizer)
    for rows in sorted((root / "whisper").glob("*.npy")):
        path = root / "codes" / rows.name
        if not path.exists():
            speech_tokenizer.make_codes(model, dataset.load_shard(root / "audio" / f"{rows.stem}.npz"), path)
