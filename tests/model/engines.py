"""vLLM engines for the tests: each in a process of its own, so that its memory goes when it goes.

The processes are forked from a server that has imported vLLM once (multiprocessing's `forkserver`): the second engine
starts in a few seconds. In an engine's process memory that nobody wrote reads as NaN, so that a weight which was never
loaded shows in every answer.
"""

import multiprocessing
import os
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np

START_SECONDS = 900.0  # on a very busy machine; a few on an idle one
ANSWER_SECONDS = 900.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # threads that wait for each other stand still on a busy machine
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in the engine's process itself
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
PRELOAD = ["vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "model.kimi_audio"]


@dataclass(frozen=True)
class Request:
    """A prompt and its recording: a waveform, or features made elsewhere. `sampling` adds to greedy decoding."""

    prompt: list[int]
    audio: np.ndarray | dict[str, np.ndarray]
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    prompt_tokens: int
    ids: list[int]
    logprobs: list[float]
    cached_tokens: int


class EngineError(Exception):
    """What an engine's process raised; `causes` has a message for each exception of the chain, the last one first."""

    def __init__(self, causes: list[str], details: str) -> None:
        super().__init__(causes, details)  # both, so that it can be pickled
        self.causes = causes
        self.details = details

    def __str__(self) -> str:
        return self.details


class Engine:
    """`LLM(model=checkpoint, **options)` in another process; a context manager.

    Raises EngineError where the model does not load.
    """

    def __init__(self, checkpoint: Path, log: Path, **options: Any) -> None:
        defaults = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 16, "enforce_eager": True}
        defaults |= {"trust_remote_code": False, "limit_mm_per_prompt": {"audio": 1}, "enable_prefix_caching": False}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._pipe, other = context.Pipe()
        self._log = log
        options = defaults | options | {"model": str(checkpoint)}
        self._process = context.Process(target=_serve, args=(other, log, options))
        with mock.patch.dict(os.environ, ENVIRONMENT):  # the first start starts the fork server, which keeps it
            self._process.start()
        other.close()
        try:
            self._receive(START_SECONDS)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, *requests: Request) -> list[Answer]:
        """Answers to requests that the engine gets at once."""
        self._pipe.send(requests)
        return self._receive(ANSWER_SECONDS)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, seconds: float) -> Any:
        try:
            ready = self._pipe.poll(seconds)
            result = self._pipe.recv() if ready else None
        except EOFError:
            ready = False
        if not ready:
            log = self._log.read_text(errors="replace")[-5000:]
            raise EngineError(
                [], f"the engine's process died, or was silent for {seconds} s; the end of its log:\n{log}"
            )
        if isinstance(result, EngineError):
            raise result
        return result


def _serve(pipe: Connection, log: Path, options: dict[str, Any]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        import torch
        from vllm import LLM, SamplingParams, envs

        # For several ranks. vLLM spawns them on CPUs, to give each its own threads; here each has one.
        envs.VLLM_WORKER_MULTIPROC_METHOD = "fork"
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert torch.empty(8).isnan().all(), "unset memory does not show"
        llm = LLM(**options)
        pipe.send("ready")
        while (requests := _receive(pipe)) is not None:
            try:
                prompts = [{"prompt_token_ids": r.prompt, "multi_modal_data": {"audio": r.audio}} for r in requests]
                sampling = [SamplingParams(**{"temperature": 0, "logprobs": 0} | r.sampling) for r in requests]
                pipe.send([_answer(output) for output in llm.generate(prompts, sampling, use_tqdm=False)])
            except Exception as error:
                pipe.send(_engine_error(error))
        llm.llm_engine.engine_core.shutdown()
    except BaseException as error:
        traceback.print_exc()
        pipe.send(_engine_error(error))
    finally:
        os._exit(0)  # vLLM's own threads and at-exit work are of no interest


def _receive(pipe: Connection) -> tuple[Request, ...] | None:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _answer(output: Any) -> Answer:
    ids = list(output.outputs[0].token_ids)
    logprobs = [step[id_].logprob for step, id_ in zip(output.outputs[0].logprobs, ids, strict=True)]
    return Answer(len(output.prompt_token_ids), ids, logprobs, output.num_cached_tokens or 0)


def _engine_error(error: BaseException) -> EngineError:
    causes, cause = [], error
    while cause is not None:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return EngineError(causes, "".join(traceback.format_exception(error)))
