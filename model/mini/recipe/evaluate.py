"""Word error rates of a running service: every recording of a set is posted to `/transcribe`, as a client would.

python -m model.mini.recipe evaluate --url http://127.0.0.1:8000 --set asterisk alsa
"""

from __future__ import annotations

import gzip
import io
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import jiwer
import numpy as np
import numpy.typing as npt
import soundfile

from . import dataset
from .numbers import cardinal, digits_of
from .texts import normalise

Array = npt.NDArray[np.float32]
ASTERISK: Final = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
ASTERISK_SOUNDS: Final = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ALSA_SOUNDS: Final = Path("/usr/share/sounds/alsa")
LONGEST: Final = 30.0  # seconds; longer recordings need several windows and are another subject
CONNECTIONS: Final = 4


@dataclass(frozen=True)
class Recording:
    """A recording and what is said in it."""

    name: str
    audio: Array  # [n] at 16 kHz
    text: str


def words(text: str) -> str:
    """The transcript style of the checkpoint: numbers as words (long ones digit by digit), no punctuation."""

    def spoken(number: re.Match[str]) -> str:
        return f" {cardinal(int(number[0])) if len(number[0]) <= 3 else digits_of(number[0])} "

    return normalise(re.sub(r"\d+", spoken, text))


def _g722(path: Path) -> Array:
    import av

    with av.open(str(path), format="g722") as container:
        parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32) / np.float32(32768)


def _read(path: Path) -> Array:
    import soxr

    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    resampled: Array = soxr.resample(audio.mean(1), rate, 16_000).astype(np.float32)
    return resampled


def asterisk() -> Iterator[Recording]:
    """The prompts of a telephone exchange, one professional speaker; tones and silences left out."""
    with gzip.open(ASTERISK, "rt", errors="replace") as lines:
        for line in lines:
            name, colon, text = line.strip().partition(":")
            path = ASTERISK_SOUNDS / f"{name}.g722"
            if colon and not line.startswith(";") and path.exists() and not re.search(r"[\[<(]", text) and words(text):
                audio = _g722(path)
                if len(audio) <= LONGEST * 16_000:
                    yield Recording(name, audio, text)


def alsa() -> Iterator[Recording]:
    """Loudspeaker positions, one speaker; the file's name is what is said."""
    for path in sorted(ALSA_SOUNDS.glob("*_*.wav")):
        yield Recording(path.stem, _read(path), path.stem.replace("_", " "))


def folder(path: Path) -> Iterator[Recording]:
    """Recordings beside a `transcripts.tsv` (file name, tab, words)."""
    for line in (path / "transcripts.tsv").read_text().splitlines():
        name, _, text = line.partition("\t")
        yield Recording(name, _read(path / name), text)


def synthetic(root: Path, name: str) -> Iterator[Recording]:
    """A test set that the recipe made."""
    shard = dataset.load_shard(root / "audio" / f"{name}.npz")
    for i, (audio, text) in enumerate(zip(shard.waveforms(), shard.texts, strict=True)):
        yield Recording(f"{name}-{i}", audio, text)


def sets(root: Path, human: Path) -> dict[str, Callable[[], Iterator[Recording]]]:
    """Every evaluation set by name."""
    return {
        "seen": lambda: synthetic(root, "seen"),
        "held_out": lambda: synthetic(root, "held_out"),
        "asterisk": asterisk,
        "alsa": alsa,
        "human": lambda: folder(human),
    }


def transcribe(client: httpx.Client, recording: Recording) -> str:
    """Post one recording as a 16-bit WAV file; returns the words that come back."""
    file = io.BytesIO()
    soundfile.write(file, recording.audio, 16_000, format="WAV", subtype="PCM_16")
    answer = client.post("/transcribe", files={"file": ("recording.wav", file.getvalue(), "audio/wav")})
    answer.raise_for_status()
    return str(answer.json()["text"])


def evaluate(url: str, recordings: list[Recording], show: int = 0) -> jiwer.WordOutput:
    """Transcribe all recordings; prints the worst of them if asked to."""
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(CONNECTIONS) as pool:
        heard = list(pool.map(lambda recording: words(transcribe(client, recording)), recordings))
    said = [words(recording.text) for recording in recordings]
    wrong = [(a, b, r.name) for a, b, r in zip(said, heard, recordings, strict=True) if a != b]
    for a, b, name in wrong[:show]:
        print(f"    {name}: {a} -> {b}")
    return jiwer.process_words(said, heard)


def main(url: str, names: list[str], root: Path, human: Path, show: int, limit: int | None = None) -> None:
    """Print one line for every set; with `limit`, on a random choice of so many recordings of each."""
    known = sets(root, human)
    for name in names or known:
        recordings = list(known[name]())
        if limit and limit < len(recordings):
            recordings = random.Random(0).sample(recordings, limit)
        out = evaluate(url, recordings, show)
        print(
            f"{name:10} {len(recordings):4} recordings  WER {out.wer:6.1%}  "
            f"(substituted {out.substitutions}, left out {out.deletions}, put in {out.insertions}, right {out.hits})",
            flush=True,
        )
