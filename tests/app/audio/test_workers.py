"""Decoder processes: they answer, wait in turn, and are replaced when a recording hangs, kills or bloats one."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from app import metrics
from app.audio.decode import AudioError
from app.audio.workers import Decoded, DecodePool, DecodeSettings
from tests.app.recordings import RATE, bad_recordings, sound, tone

SECONDS_TO_TROUBLE = {1.5: "sleep", 2.0: "crash", 3.0: "bloat", 4.0: "raise"}


@dataclass(frozen=True)
class Trouble:
    """Stands where the features are computed, and does what the length of a recording asks for."""

    def __call__(self, waveform: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        match SECONDS_TO_TROUBLE.get(len(waveform) / RATE):
            case "sleep":
                time.sleep(60)
            case "crash":
                ctypes.string_at(0)
            case "bloat":
                np.ones(2**28, np.float64)
            case "raise":
                raise KeyError("unforeseen")
        return {"peak": np.array([np.abs(waveform).max()])}


@asynccontextmanager
async def pool(workers: int = 1, seconds: float = 30) -> AsyncIterator[DecodePool]:
    decoders = DecodePool(workers, DecodeSettings(Trouble(), RATE, 8, memory=256 * 2**20, timeout=seconds))
    await decoders.start()
    try:
        yield decoders
    finally:
        await decoders.stop()


@contextmanager
def stored(data: bytes) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file


async def decode(decoders: DecodePool, data: bytes, max_seconds: float = 3600) -> Decoded:
    with stored(data) as file:
        return await decoders.decode(file, max_seconds)


def children() -> list[int]:
    """The decoder processes of this one."""
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def wait_until_gone(pid: int) -> None:
    while any(child.pid == pid for child in multiprocessing.active_children()):
        time.sleep(0.01)


async def test_features_samples_and_seconds() -> None:
    async with pool() as decoders:
        answer = await decode(decoders, sound(tone(1.25, 48_000), 48_000))
    assert answer.features["peak"] == pytest.approx(0.5, abs=0.01)
    assert answer.samples == pytest.approx(1.25 * RATE, abs=1)
    assert answer.duration == 1.25
    assert 0 < answer.worked < 5


async def test_as_many_at_once_as_there_are_workers() -> None:
    async with pool(workers=2) as decoders:
        assert len(children()) == 2
        answers = await asyncio.gather(*(decode(decoders, sound(tone(0.5 + n / 100))) for n in range(12)))
        assert [answer.duration for answer in answers] == pytest.approx([0.5 + n / 100 for n in range(12)])
        assert max(answer.queued for answer in answers) > 0
        assert len(children()) == 2
    assert children() == []


async def test_a_refusal_leaves_the_worker_alone() -> None:
    async with pool() as decoders:
        before = children()
        for name, data in bad_recordings().items():
            with pytest.raises(AudioError) as caught:
                await decode(decoders, data)
            assert caught.value.code == name.partition(":")[0]
        assert children() == before


@pytest.mark.parametrize(
    ("seconds", "code"), [(2.0, "decoder_died"), (3.0, "too_much_memory"), (4.0, "undecodable_audio")]
)
async def test_trouble_is_one_recordings_own(seconds: float, code: str) -> None:
    async with pool() as decoders:
        trouble = asyncio.create_task(decode(decoders, sound(tone(seconds))))
        await asyncio.sleep(0)
        others = [asyncio.create_task(decode(decoders, sound(tone(0.5)))) for _ in range(3)]
        with pytest.raises(AudioError) as caught:
            await trouble
        assert caught.value.code == code
        assert [(await other).duration for other in others] == [0.5] * 3


async def test_a_worker_that_hangs_is_replaced() -> None:
    async with pool(seconds=3) as decoders:
        before = children()
        with pytest.raises(AudioError) as caught:
            await decode(decoders, sound(tone(1.5)))
        assert caught.value.code == "decode_timeout"
        assert (await decode(decoders, sound(tone(0.5)))).duration == 0.5
        assert children() != before


async def test_a_worker_that_died_idle_is_nobodys_fault() -> None:
    async with pool() as decoders:
        (idle,) = children()
        os.kill(idle, signal.SIGKILL)
        await asyncio.to_thread(wait_until_gone, idle)
        assert (await decode(decoders, sound(tone(0.5)))).duration == 0.5
        assert children() != [idle]


async def test_leaving_frees_the_worker() -> None:
    async with pool() as decoders:
        leaver = asyncio.create_task(decode(decoders, sound(tone(1.5))))
        waiting = asyncio.create_task(decode(decoders, sound(tone(0.6))))
        await asyncio.sleep(0.2)
        leaver.cancel()
        waiting.cancel()
        await asyncio.gather(leaver, waiting, return_exceptions=True)
        started = time.monotonic()
        assert (await decode(decoders, sound(tone(0.5)))).duration == 0.5
        assert time.monotonic() - started < 40  # less than the sleep of the one that left
        await asyncio.sleep(0.1)
        assert metrics.DECODE_WORKERS_BUSY._value.get() == 0


async def test_descriptors_and_files_do_not_pile_up() -> None:
    async with pool() as decoders:
        await decode(decoders, sound(tone(0.5)))
        before = [psutil.Process(pid).num_fds() for pid in (os.getpid(), *children())]
        for _ in range(20):
            await decode(decoders, sound(tone(0.5)))
        assert [psutil.Process(pid).num_fds() for pid in (os.getpid(), *children())] == before
