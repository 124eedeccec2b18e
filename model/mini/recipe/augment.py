"""Rooms, telephones, noise and levels: what lies between a mouth and a file."""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, fftconvolve, sosfilt  # type: ignore[import-untyped]

Array = npt.NDArray[np.float32]
RATE: Final = 16_000
CLEAN: Final = 0.2  # the share of samples that stay as the voice gave them, but for their level


def room(audio: Array, r: random.Random) -> Array:
    """A simulated room: the direct sound, a few early echoes, an exponentially decaying diffuse tail."""
    rng = np.random.default_rng(r.getrandbits(32))
    decay = r.uniform(0.08, 0.5)  # seconds to -60 dB
    n = int(decay * RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail *= r.uniform(0.02, 0.25) / np.sqrt((tail**2).sum() + 1e-9) * 2
    for _ in range(r.randint(2, 6)):
        tail[r.randint(16, min(n - 1, 800))] += r.uniform(-0.4, 0.4)
    tail[0] = 1.0
    echoing: Array = fftconvolve(audio, tail)[: len(audio)].astype(np.float32)
    return echoing


def band(audio: Array, low: float, high: float) -> Array:
    """Keep the frequencies between `low` and `high` Hz."""
    sos = butter(3, (low, min(high, RATE / 2 - 200)), "bandpass", fs=RATE, output="sos")
    filtered: Array = sosfilt(sos, audio).astype(np.float32)
    return filtered


def telephone(audio: Array, r: random.Random) -> Array:
    """The telephone's band, sometimes with the coarse steps of mu-law coding."""
    out = band(audio, r.uniform(150, 350), r.uniform(3000, 3800))
    if r.random() < 0.5:
        peak = float(np.abs(out).max()) + 1e-6
        coded = np.sign(out) * np.log1p(255 * np.abs(out) / peak) / np.log(256)
        coded = np.round(coded * 127) / 127
        out = (np.sign(coded) * (np.power(256, np.abs(coded)) - 1) / 255 * peak).astype(np.float32)
    return out


def tilt(audio: Array, r: random.Random) -> Array:
    """A gentle slope of the spectrum: other microphones, other distances."""
    a = r.uniform(-0.5, 0.5)
    out = audio.copy()
    out[1:] -= a * audio[:-1]
    return out


def noise(n: int, r: random.Random) -> Array:
    """Noise of unit power with a random slope of the spectrum, sometimes with mains hum, sometimes in gusts."""
    rng = np.random.default_rng(r.getrandbits(32))
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 30)
    out = np.fft.irfft(spectrum * f ** -r.uniform(0, 1.1), n)
    out /= out.std() + 1e-9
    t = np.arange(n) / RATE
    if r.random() < 0.2:
        for k in range(1, 5):
            out += r.uniform(0, 0.8) * np.sin(2 * np.pi * r.choice((50, 60)) * k * t + r.random() * 6)
    if r.random() < 0.3:
        out *= 1 + r.uniform(0.2, 0.9) * np.sin(2 * np.pi * r.uniform(0.1, 2) * t + r.random() * 6)
    even: Array = (out / (out.std() + 1e-9)).astype(np.float32)
    return even


def augment(audio: Array, r: random.Random) -> Array:
    """A random chain of the above; always a random level at the end."""
    if len(audio) and r.random() > CLEAN:
        if r.random() < 0.4:
            audio = room(audio, r)
        if r.random() < 0.5:
            audio = tilt(audio, r)
        phone = r.random() < 0.25
        if phone and r.random() < 0.5:
            audio, phone = telephone(audio, r), False  # noise of this side of the line comes after the band
        if r.random() < 0.6:
            decibels = r.uniform(15, 45) if r.random() < 0.85 else r.uniform(6, 15)
            power = float(np.sqrt((audio**2).mean())) + 1e-6
            audio = audio + noise(len(audio), r) * power * 10 ** (-decibels / 20)
        if phone:
            audio = telephone(audio, r)
    peak = float(np.abs(audio).max()) if len(audio) else 0.0
    level = 0.9 * 10 ** (-r.uniform(0, 24) / 20)
    return (audio * (level / (peak + 1e-6))).astype(np.float32)


def silent(seconds: float, r: random.Random) -> Array:
    """A sample in which nobody speaks: digital silence, or noise at any level."""
    n = int(seconds * RATE)
    if r.random() < 0.3:
        return np.zeros(n, np.float32)
    return (noise(n, r) * 10 ** r.uniform(-4.5, -1.0)).clip(-1, 1).astype(np.float32)
