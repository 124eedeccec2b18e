"""vLLM's AsyncLLM: start, generate, abort, health, stop. The only file of the service that imports vLLM.

vLLM is imported on starting, in a thread: that takes seconds, and the service answers meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from app.settings import Settings

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from app.audio.workers import Features

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEALTH_SECONDS: Final = 0.25
STOP_SECONDS: Final = 5.0  # then the processes are killed: they hold nothing that would be lost


class EngineDeadError(Exception):
    """The engine has ended, and what it was working on with it; nothing but a restart of the service brings it back."""


@dataclass(frozen=True)
class Piece:
    """What the engine found since the last piece.

    ``tokens`` counts the new ones; ``waited`` is the seconds the request waited for its first step, known once it ran.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: Literal["stop", "length"] | None
    waited: float


class Engine:
    """One model in vLLM."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._llm: AsyncLLM | None = None

    @property
    def max_model_len(self) -> int:
        """Positions that a prompt and its answer may take together."""
        if self._llm is None:
            raise EngineDeadError
        return int(self._llm.model_config.max_model_len)

    async def start(self, model_dir: Path, name: str) -> None:
        """Load the checkpoint in ``model_dir``, ``name`` in metrics; raises whatever vLLM raises when it cannot."""
        self._llm = await in_daemon_thread(lambda: _load(model_dir, name, self._settings))

    async def generate(
        self,
        request_id: str,
        prompt: list[int],
        features: Features,
        *,
        temperature: float,
        max_tokens: int,
        stop_token: int,
    ) -> AsyncGenerator[Piece, None]:
        """Answer ``prompt``, whose one audio placeholder stands for ``features``, piece by piece.

        Closing the iterator takes the request out of the engine. Raises :class:`EngineDeadError` when the engine dies.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        if self._llm is None or self.dead:
            raise EngineDeadError
        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            stop_token_ids=[stop_token],
            ignore_eos=True,  # the text ends at stop_token alone
            output_kind=RequestOutputKind.DELTA,
        )
        request = TokensPrompt(prompt_token_ids=prompt, multi_modal_data={"audio": features})
        (rendered,) = await self._llm.renderer.render_cmpl_async([request])
        outputs = self._llm.generate(rendered, sampling, request_id)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield _piece(output)
        except VllmEngineDeadError:
            raise EngineDeadError from None

    @property
    def dead(self) -> bool:
        """Whether the engine ran and runs no more."""
        return self._llm is not None and self._llm.errored

    async def died(self) -> None:
        """Return when the engine has died."""
        while not self.dead:  # noqa: ASYNC110
            await asyncio.sleep(HEALTH_SECONDS)  # vLLM has a flag for it, no event

    async def stop(self) -> None:
        """End the engine's processes; what it works on is lost."""
        if self._llm is not None:
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()  # or it may take the core's end for a failure, and log it as one
            await asyncio.to_thread(self._llm.shutdown, STOP_SECONDS)
            self._llm = None


def _piece(output: RequestOutput) -> Piece:
    completion = output.outputs[0]
    reason = completion.finish_reason
    if reason == "abort":  # not by this request's caller, who would not read this: the engine is stopping
        raise EngineDeadError
    if reason not in (None, "stop", "length"):
        raise RuntimeError(f"the engine ended a request with {reason!r}")
    waited = max(0.0, output.metrics.scheduled_ts - output.metrics.queued_ts) if output.metrics else 0.0
    return Piece(completion.text, len(completion.token_ids), len(output.prompt_token_ids or ()), reason, waited)


def _load(model_dir: Path, name: str, settings: Settings) -> AsyncLLM:
    """Import vLLM and load the model (blocking, for as long as that takes)."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # forking a process with threads may deadlock the child
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", settings.log_level.upper())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # who runs this service is nobody else's business

    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    cpu = current_platform.is_cpu()
    dtype = settings.dtype
    if dtype == "auto" and cpu and not _cpu_has_bfloat16():
        dtype = "float32"  # emulated bfloat16 takes 50 times as long
    arguments: dict[str, Any] = {}
    if settings.speech_tokenizer:
        arguments["hf_overrides"] = {"speech_tokenizer": settings.speech_tokenizer}
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model_dir),
            served_model_name=name,
            dtype=dtype,
            trust_remote_code=False,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            enforce_eager=cpu if settings.enforce_eager is None else settings.enforce_eager,
            limit_mm_per_prompt={"audio": 1},
            # Recordings seldom repeat: neither cache would be hit, and both would keep one caller's audio for the next.
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=False,  # vLLM's own series in /metrics
            **arguments,
        )
    )


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, on x86 or Arm."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that does not keep the process alive, so that a stop need not wait for a load to end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_result: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_result(value)

    def run() -> None:
        outcome: tuple[Callable[[Any], None], Any]
        try:
            outcome = future.set_result, work()
        except BaseException as error:  # handed over, whatever it is
            outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True, name="load").start()
    return await future
