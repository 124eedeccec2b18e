"""One recording through decoder and engine, piece by piece."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from app import metrics
from app.audio.decode import AudioError
from app.engine import EngineDeadError
from app.errors import ApiError
from app.transcription.render import Timings, Transcription, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from app.audio.workers import Decoded, DecodePool
    from app.engine import Engine, Piece
    from app.settings import Settings
    from app.transcription.request import TranscriptionRequest
    from model.features import FeatureExtractor
    from model.tokenizer import KimiAudioTokenizer

TEXT_TOKENS_PER_SECOND: Final = 4  # of fast speech: the room kept for the answer when the caller sets no bound


@dataclass(frozen=True)
class Checkpoint:
    """What the service, outside the engine, knows of a checkpoint."""

    name: str
    path: Path
    languages: dict[str, str]  # ISO 639-1 to English name
    extractor: FeatureExtractor
    tokenizer: KimiAudioTokenizer


@dataclass(frozen=True)
class Plan:
    """A prompt with one placeholder for the audio, and the longest recording that fits beside it, in seconds."""

    prompt: list[int]
    context_seconds: float


class Transcriber:
    """Turns recordings into text with one checkpoint."""

    def __init__(self, settings: Settings, checkpoint: Checkpoint, decoders: DecodePool, engine: Engine) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._decoders = decoders
        self._engine = engine

    async def transcribe(self, file: BinaryIO, request: TranscriptionRequest) -> Transcription:
        """Transcribe the recording in ``file``, which must have a descriptor.

        Raises :class:`AudioError` for a recording, and :class:`ApiError` for a request, that cannot be served.
        Cancelling it takes the work out of decoders and engine.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                plan = await asyncio.to_thread(self._plan, request)
                decoded = await self._decode(file, plan, request)
                return await self._generate(started, plan, decoded, request)
        except TimeoutError:
            message = f"No answer within {self._settings.request_timeout:g} seconds: the service is overloaded."
            raise ApiError.unavailable("timeout", message, 30) from None
        except EngineDeadError:
            raise ApiError.unavailable("engine_stopped", "The engine stopped before it had the answer.", 30) from None

    def _plan(self, request: TranscriptionRequest) -> Plan:
        """The prompt for ``request``; raises :class:`ApiError` when it leaves no room for audio."""
        from model.prompt import instruction, transcription_prompt

        told = instruction(request.task, request.language, request.target_language, request.prompt)
        prompt = transcription_prompt(self._checkpoint.tokenizer, told)
        context = self._engine.max_model_len
        room = context - (len(prompt) - 1)
        extractor = self._checkpoint.extractor
        if request.max_tokens is None:
            per_second = extractor.positions(extractor.sampling_rate * 100) / 100
            positions = int(room * per_second / (per_second + TEXT_TOKENS_PER_SECOND))
        else:
            positions = room - request.max_tokens
        if positions < 1:
            field, most = ("prompt", None) if request.max_tokens is None or room <= 1 else ("max_tokens", room - 1)
            hint = f"; with this prompt it may be {most} and a moment of audio" if most else ""
            raise ApiError(
                400,
                "context_exceeded",
                f"{field} leaves no room for audio in the context of {context} tokens{hint}.",
                param=field,
            )
        return Plan(prompt, extractor.max_samples(positions) / extractor.sampling_rate)

    async def _decode(self, file: BinaryIO, plan: Plan, request: TranscriptionRequest) -> Decoded:
        try:
            decoded = await self._decoders.decode(file, min(self._settings.max_audio_seconds, plan.context_seconds))
        except AudioError as error:
            if error.code == "audio_too_long" and plan.context_seconds < self._settings.max_audio_seconds:
                beside = "" if request.max_tokens is None else f" beside max_tokens={request.max_tokens}"
                raise AudioError(
                    "audio_too_long",
                    f"The recording is longer than {plan.context_seconds:g} seconds, the most that fits"
                    f" the model's context of {self._engine.max_model_len} tokens{beside}.",
                ) from None
            raise
        metrics.AUDIO_SECONDS.observe(decoded.duration)
        metrics.DECODE_SECONDS.observe(decoded.worked)
        return decoded

    async def pieces(self, plan: Plan, decoded: Decoded, request: TranscriptionRequest) -> AsyncGenerator[Piece, None]:
        """What the engine finds, as it finds it; closing the iterator ends the work."""
        from model.prompt import text_end_id

        positions = len(plan.prompt) - 1 + self._checkpoint.extractor.positions(decoded.samples)
        room = self._engine.max_model_len - positions
        outputs = self._engine.generate(
            uuid.uuid4().hex,
            plan.prompt,
            decoded.features,
            temperature=request.temperature,
            max_tokens=room if request.max_tokens is None else min(room, request.max_tokens),
            stop_token=text_end_id(self._checkpoint.tokenizer),
        )
        async with aclosing(outputs):
            async for piece in outputs:
                metrics.COMPLETION_TOKENS.inc(piece.tokens)
                yield piece

    async def _generate(
        self, started: float, plan: Plan, decoded: Decoded, request: TranscriptionRequest
    ) -> Transcription:
        """The whole answer; ``started`` is the monotonic time when the upload was complete."""
        submitted = time.monotonic()
        text: list[str] = []
        tokens = 0
        last: Piece | None = None
        async with aclosing(self.pieces(plan, decoded, request)) as pieces:
            async for last in pieces:
                if not tokens:
                    metrics.TIME_TO_FIRST_TOKEN.observe(time.monotonic() - started)
                text.append(last.text)
                tokens += last.tokens
        if last is None or last.finish_reason is None:
            raise RuntimeError("the engine ended without a finish reason")
        ended = time.monotonic()
        timings = Timings(
            decode=round(decoded.worked, 4),
            queue=round(decoded.queued + last.waited, 4),
            engine=round(ended - submitted - last.waited, 4),
        )
        metrics.PROMPT_TOKENS.inc(last.prompt_tokens)
        metrics.QUEUE_SECONDS.observe(timings.queue)
        metrics.ENGINE_SECONDS.observe(timings.engine)
        metrics.REAL_TIME_FACTOR.observe((ended - started) / decoded.duration)
        only_language = next(iter(self._checkpoint.languages)) if len(self._checkpoint.languages) == 1 else None
        return Transcription(
            id=f"transcription-{uuid.uuid4().hex}",
            model=self._checkpoint.name,
            text="".join(text).strip(),
            language=request.language or only_language,
            task=request.task,
            duration=round(decoded.duration, 3),
            finish_reason=last.finish_reason,
            usage=Usage(
                audio_seconds=round(decoded.duration, 3), prompt_tokens=last.prompt_tokens, completion_tokens=tokens
            ),
            timings=timings,
        )
