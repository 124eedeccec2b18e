"""The life of the service: from starting over ready to stopped, failed or dead, and who is let in on the way."""

import asyncio
import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import numpy as np
import soundfile

from app import metrics
from app.audio.workers import DecodePool, DecodeSettings
from app.engine import Engine, in_daemon_thread
from app.errors import ApiError
from app.settings import Settings
from app.transcription.request import TranscriptionRequest
from app.transcription.transcriber import Checkpoint, Transcriber

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "stopping", "failed", "dead"]

RETRY_SECONDS: Final = 10


class Service:
    """Owns decoders and engine. ``state`` says where it is in its life, ``reason`` why, in a sentence."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state: State = "starting"
        self.reason = "The model is being loaded."
        self.ended = asyncio.Event()  # set when it has failed or died: then the process has nothing left to do
        self._engine = Engine(settings)
        self._decoders: DecodePool | None = None
        self._transcriber: Transcriber | None = None
        self._checkpoint: Checkpoint | None = None
        self._admitted = 0
        self._life: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load the model, in the background."""
        self._life = asyncio.create_task(self._live())

    @property
    def languages(self) -> dict[str, str]:
        """ISO 639-1 code to English name of what the checkpoint understands; none before it is known."""
        return self._checkpoint.languages if self._checkpoint else {}

    @contextmanager
    def admit(self) -> Iterator[Transcriber]:
        """Let one recording in; raises :class:`ApiError`: 503 unless ready, 429 when there are too many already."""
        if self.state != "ready" or self._transcriber is None:
            raise self.unavailable()
        if self._admitted >= self.settings.max_requests:
            message = f"{self._admitted} recordings are under way or waiting, as many as are taken at a time."
            raise ApiError(429, "too_many_requests", message, headers={"Retry-After": "1"})
        self._admitted += 1
        try:
            yield self._transcriber
        finally:
            self._admitted -= 1

    def unavailable(self) -> ApiError:
        """The answer to a request that cannot be served in this state."""
        return ApiError.unavailable(f"service_{self.state}", self.reason, RETRY_SECONDS)

    def stopping(self) -> None:
        """Let nobody in any more; what is under way goes on."""
        if self.state in ("starting", "ready"):
            self._enter("stopping", "The service is being stopped.")

    async def stop(self) -> None:
        """End decoders and engine."""
        self.stopping()
        if self._life:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
        if self._decoders:
            await self._decoders.stop()
        await self._engine.stop()

    def _enter(self, state: State, reason: str, cause: Exception | None = None) -> None:
        if self.state == "stopping":  # whatever still happens: it is over
            return
        self.state, self.reason = state, reason
        metrics.ENGINE_READY.set(state == "ready")
        over = state in ("failed", "dead")
        logger.log(logging.ERROR if over else logging.INFO, "state=%s %s", state, reason, exc_info=cause)
        if over:
            self.ended.set()

    async def _live(self) -> None:
        """Start, be ready, and notice when the engine dies."""
        try:
            await self._start()
        except Exception as error:
            foreseen = isinstance(error, ValueError)  # CheckpointError is one: its sentence says all
            self._enter("failed", f"The model cannot be served: {_sentence(error)}", None if foreseen else error)
            return
        self._enter("ready", f"{self.settings.model} is ready.")
        await self._engine.died()
        self._enter("dead", "The engine died; the service has to be started again.")

    async def _start(self) -> None:
        settings = self.settings
        self._checkpoint = checkpoint = await in_daemon_thread(lambda: _read_checkpoint(settings))
        self._decoders = DecodePool(
            settings.decode_workers,
            DecodeSettings(
                extract=checkpoint.extractor,
                sampling_rate=checkpoint.extractor.sampling_rate,
                max_channels=settings.max_channels,
                memory=settings.decode_memory_mib * 2**20,
                timeout=settings.decode_timeout,
            ),
        )
        await self._decoders.start()
        await self._engine.start(checkpoint.path, checkpoint.name)
        transcriber = Transcriber(settings, checkpoint, self._decoders, self._engine)
        with tempfile.TemporaryFile() as wav:
            wav.write(_second_of_noise())
            wav.flush()
            await transcriber.transcribe(wav, TranscriptionRequest(max_tokens=8))
        self._transcriber = transcriber


def _read_checkpoint(settings: Settings) -> Checkpoint:
    """Find (or fetch) the checkpoint and look at all its files; raises CheckpointError naming what is wrong."""
    from model import checkpoint
    from model.tokenizer import KimiAudioTokenizer

    path = checkpoint.resolve(settings.model)
    speech_tokenizer = checkpoint.speech_tokenizer_dir(path, settings.speech_tokenizer)
    checkpoint.verify(path, speech_tokenizer)
    return Checkpoint(
        name=path.name if Path(settings.model).is_dir() else settings.model,
        path=path,
        languages=checkpoint.supported_languages(path),
        extractor=checkpoint.feature_extractor(path, speech_tokenizer),
        tokenizer=KimiAudioTokenizer.from_pretrained(path),
    )


def _second_of_noise() -> bytes:
    """A WAV file for the warm-up request."""
    wav = io.BytesIO()
    soundfile.write(wav, np.random.default_rng(0).normal(0, 0.01, 16_000), 16_000, format="WAV")
    return wav.getvalue()


def _sentence(error: Exception) -> str:
    """The first line of what went wrong, as a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
