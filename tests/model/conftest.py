"""Checkpoints with the reference's answers, and the worst difference from them that the tests saw."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model import checkpoints
from tests.model.checkpoints import Shape
from tests.model.engines import Answer, Request
from tests.model.reference import Reference, Transcript

INSTRUCTION = "Please transcribe the following audio:"
TOKENS = 20
TOLERANCE = 2e-3  # of a log-probability

worst_differences: defaultdict[str, float] = defaultdict(float)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads that wait for each other stand still on a busy machine, and the tensors here are small."""
    torch.set_num_threads(1)


class Case:
    """A checkpoint, recordings of every length that matters to it, and what the reference answers."""

    def __init__(self, path: Path, shape: Shape, speech_tokenizer: Path | None) -> None:
        self.path = path
        self.shape = shape
        self.speech_tokenizer = speech_tokenizer
        self.expected = cache(self._expected)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.path, speech_tokenizer=self.speech_tokenizer)

    @cached_property
    def recordings(self) -> dict[str, np.ndarray]:
        window = 16000 * self.shape.window_seconds
        lengths = {
            "1 sample": 1,
            "1279 samples": 1279,
            "1280 samples": 1280,
            "1281 samples": 1281,
            "1.25 s": 20000,
            "5 s": 80000,
            "window less 10 ms": window - 160,
            "window": window,
            "another window": window,
            "window and 10 ms": window + 160,
            "two windows and a third": 7 * window // 3,
        }
        made = {name: checkpoints.recording(n, seed) for seed, (name, n) in enumerate(lengths.items())}
        return made | {"silence": np.zeros(32000, dtype=np.float32)}

    def _expected(self, name: str) -> Transcript:
        return self.reference.transcribe(self.recordings[name], INSTRUCTION, TOKENS)

    def request(self, name: str, audio: dict[str, np.ndarray] | None = None, **sampling: object) -> Request:
        """A greedy transcription of a recording, raw unless its features are given."""
        prompt = self.reference.tokenizer.prompt(INSTRUCTION, positions=1)
        return Request(
            prompt, (self.recordings[name], 16000) if audio is None else audio, {"max_tokens": TOKENS} | sampling
        )

    def check(self, group: str, names: Sequence[str], answers: Sequence[Answer]) -> None:
        """Ids as the reference's, log-probabilities within the tolerance."""
        for name, answer in zip(names, answers, strict=True):
            expected = self.expected(name)
            assert answer.prompt_tokens == expected.prompt_tokens, name
            assert answer.ids == expected.ids, name
            difference = max(abs(a - b) for a, b in zip(answer.logprobs, expected.logprobs, strict=True))
            assert not math.isnan(difference), f"{name}: NaN, so memory was read that nobody wrote"
            worst_differences[group] = max(worst_differences[group], difference)
            assert difference < TOLERANCE, name


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Makes the checkpoint of a shape, once a session, with its speech tokenizer `inside`, `elsewhere` or `off`."""

    @cache
    def make(shape: Shape, speech_tokenizer: str = "inside") -> Case:
        path = checkpoints.write(tmp_path_factory.mktemp("checkpoint"), shape)
        inside = path / "glm-4-voice-tokenizer"
        if speech_tokenizer == "inside":
            return Case(path, shape, inside)
        if speech_tokenizer == "elsewhere":
            return Case(path, shape, inside.rename(tmp_path_factory.mktemp("elsewhere") / "tokenizer"))
        return Case(path, shape, None)

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if worst_differences:
        terminalreporter.section("worst |dlogp| against the reference")
        for group, difference in worst_differences.items():
            terminalreporter.write_line(f"{difference:.1e}  {group}")
