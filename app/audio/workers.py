"""Processes that decode recordings and compute features, off the event loop and out of reach of hostile files.

A decoder that hangs, dies or wants too much memory is replaced, and only the recording that did it is refused.
"""

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import soundfile

from app import metrics
from app.audio.decode import AudioError, decode

logger = logging.getLogger(__name__)

Features = dict[str, npt.NDArray[Any]]

START_SECONDS: Final = 60.0
LEAVE_SECONDS: Final = 1.0  # what a job that nobody waits for may still take before its process is replaced


@dataclass(frozen=True)
class DecodeSettings:
    """What every decoder needs to know; sizes in bytes, times in seconds."""

    extract: Callable[[npt.NDArray[np.float32]], Features]  # picklable: it goes to the processes
    sampling_rate: int
    max_channels: int
    memory: int
    timeout: float


@dataclass(frozen=True)
class Decoded:
    """A recording ready for the engine: ``samples`` at the model's rate, the other figures in seconds."""

    features: Features
    samples: int
    duration: float
    queued: float
    worked: float


@dataclass(frozen=True)
class _Refusal:
    """Why a process gave no features; ``trace`` when the reason was not foreseen."""

    error: AudioError
    trace: str | None = None


def _serve(conn: Connection, settings: DecodeSettings) -> None:
    """The process: take a file's descriptor, answer with features or a refusal, until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service ends its workers itself
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C complain there, about files of strangers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold somebody's recording
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _rehearse(settings)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + settings.memory,) * 2)
    conn.send(None)
    while True:
        try:
            max_seconds: float = conn.recv()
        except EOFError:
            return
        with os.fdopen(recv_handle(conn), "rb") as file:
            conn.send(_answer(file, settings, max_seconds))


def _rehearse(settings: DecodeSettings) -> None:
    """Load all that a first job would, so that the memory bound counts recordings only."""
    wav = BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    soundfile.write(wav, noise, 44_100, format="WAV")
    wav.seek(0)
    settings.extract(decode(wav, settings.sampling_rate, 10, 1).waveform)


def _answer(file: BinaryIO, settings: DecodeSettings, max_seconds: float) -> Decoded | _Refusal:
    started = time.monotonic()
    try:
        file.seek(0)
        recording = decode(file, settings.sampling_rate, max_seconds, settings.max_channels)
        features = settings.extract(recording.waveform)
    except AudioError as error:
        return _Refusal(error)
    except MemoryError:
        limit = f"{settings.memory / 2**20:g} MiB"
        return _Refusal(
            AudioError("too_much_memory", f"Decoding the recording takes more memory than the {limit} it may.")
        )
    except Exception:
        return _Refusal(AudioError("undecodable_audio", "The recording cannot be decoded."), traceback.format_exc())
    return Decoded(features, len(recording.waveform), recording.duration, 0.0, time.monotonic() - started)


class _Worker:
    """One process and the connection to it."""

    def __init__(self, settings: DecodeSettings) -> None:
        """Start the process and wait until it is ready (blocking); raises RuntimeError when it does not get there."""
        context = multiprocessing.get_context("spawn")
        self.conn, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings), name="decode", daemon=True)
        self.process.start()
        theirs.close()
        try:
            if not self.conn.poll(START_SECONDS):
                raise EOFError
            self.conn.recv()
        except (EOFError, OSError):
            self.kill()
            raise RuntimeError("a decoder process does not start") from None

    def submit(self, file: int, max_seconds: float) -> None:
        """Hand over the descriptor ``file``; it is duplicated, the caller may close its own."""
        self.conn.send(max_seconds)
        send_handle(self.conn, file, self.process.pid)

    def result(self) -> Decoded | _Refusal | None:
        """The answer (blocking), None when the process died."""
        try:
            answer: Decoded | _Refusal = self.conn.recv()
            return answer
        except (EOFError, OSError):
            return None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.conn.close()


class DecodePool:
    """A fixed number of decoder processes; recordings wait their turn in order of arrival."""

    def __init__(self, workers: int, settings: DecodeSettings) -> None:
        self._size = workers
        self._settings = settings
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._workers: set[_Worker] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2 * workers, thread_name_prefix="decode")
        self._stopped = False

    async def start(self) -> None:
        """Start every process; raises RuntimeError when one does not start."""
        await asyncio.gather(*(self._add_worker() for _ in range(self._size)))

    async def decode(self, file: BinaryIO, max_seconds: float) -> Decoded:
        """Decode ``file``, which must have a descriptor, and compute its features.

        Raises :class:`AudioError` for what the recording is, or does to its decoder.
        """
        arrived = time.monotonic()
        worker = await self._next_worker()
        queued = time.monotonic() - arrived
        metrics.DECODE_WORKERS_BUSY.inc()
        job = asyncio.get_running_loop().run_in_executor(self._threads, worker.result)
        try:
            worker.submit(file.fileno(), max_seconds)
            answer = await asyncio.wait_for(asyncio.shield(job), self._settings.timeout)
        except TimeoutError:
            seconds = f"{self._settings.timeout:g} seconds"
            raise AudioError(
                "decode_timeout", f"Decoding the recording takes longer than the {seconds} it may."
            ) from None
        except OSError:
            answer = None
        finally:
            self._in_background(self._release(worker, job))
        if answer is None:
            raise AudioError("decoder_died", "The recording made its decoder crash: it is damaged, or not a recording.")
        if isinstance(answer, _Refusal):
            if answer.trace:
                logger.error("unforeseen decoding error\n%s", answer.trace)
            raise answer.error
        return Decoded(answer.features, answer.samples, answer.duration, queued, answer.worked)

    async def stop(self) -> None:
        """End every process."""
        self._stopped = True
        await asyncio.gather(*self._chores)
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._threads.shutdown()

    def _in_background(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _next_worker(self) -> _Worker:
        """The next idle worker; one that has died while it was idle is not the next recording's fault."""
        while not (worker := await self._idle.get()).process.is_alive():
            self._in_background(self._replace(worker))
        return worker

    async def _add_worker(self) -> None:
        worker = await asyncio.get_running_loop().run_in_executor(self._threads, _Worker, self._settings)
        self._workers.add(worker)
        self._idle.put_nowait(worker)

    async def _release(self, worker: _Worker, job: asyncio.Future[Decoded | _Refusal | None]) -> None:
        """Make ``worker`` free for the next recording, or put another in its place if it is not done."""
        done, _ = await asyncio.wait({job}, timeout=0 if self._stopped else LEAVE_SECONDS)
        if done and job.result() is not None:
            self._idle.put_nowait(worker)
        else:
            await self._replace(worker)
        metrics.DECODE_WORKERS_BUSY.dec()

    async def _replace(self, worker: _Worker) -> None:
        logger.warning("replacing decoder process %s (exit code %s)", worker.process.pid, worker.process.exitcode)
        self._workers.discard(worker)
        await asyncio.get_running_loop().run_in_executor(self._threads, worker.kill)
        while not self._stopped:
            try:
                await self._add_worker()
                break
            except RuntimeError as error:
                logger.error("%s; trying again", error)
                await asyncio.sleep(1)
