"""The model, run by vLLM, says what the reference says: every checkpoint, every way of scheduling."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from model.features import FeatureExtractor
from tests.model.checkpoints import OTHER_SIZES, RELEASE_LIKE, Shape
from tests.model.conftest import INSTRUCTION, Case
from tests.model.engines import Answer, Engine, EngineError, Request

ALL_IN_A_STEP = {"max_num_batched_tokens": 4096}
IN_PIECES = {"max_num_batched_tokens": 1024, "long_prefill_token_threshold": 64}
LOGITS_PROCESSORS = {"logits_processors": ["tests.model.pushing:PushHighestIds"]}


@dataclass(frozen=True)
class Setup:
    name: str
    shape: Shape
    speech_tokenizer: str = "inside"
    options: dict[str, Any] = field(default_factory=dict)


SETUPS = [
    Setup("whole prompts", RELEASE_LIKE, options=ALL_IN_A_STEP | LOGITS_PROCESSORS),
    Setup("prompts in pieces", RELEASE_LIKE, options=IN_PIECES | {"mm_processor_cache_gb": 0}),
    Setup("prefix caching", RELEASE_LIKE, options=ALL_IN_A_STEP | {"enable_prefix_caching": True}),
    Setup("other sizes", OTHER_SIZES, "elsewhere", IN_PIECES | {"enable_prefix_caching": True}),
    Setup("no speech tokens", RELEASE_LIKE, "off", ALL_IN_A_STEP),
]


@dataclass(frozen=True)
class Running:
    setup: Setup
    case: Case
    engine: Engine

    def check(self, group: str, names: list[str], answers: list[Answer]) -> None:
        self.case.check(f"{self.setup.name}, {group}", names, answers)


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: setup.name)
def running(
    request: pytest.FixtureRequest, case: Callable[..., Case], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    setup: Setup = request.param
    made = case(setup.shape, setup.speech_tokenizer)
    options = dict(setup.options)
    if setup.speech_tokenizer != "inside":
        options["hf_overrides"] = {"speech_tokenizer": str(made.speech_tokenizer or "off")}
    with Engine(made.path, tmp_path_factory.mktemp("engine") / "log", **options) as engine:
        yield Running(setup, made, engine)


def test_recordings_differ_enough_to_tell_them_apart(case: Callable[..., Case]) -> None:
    for shape, made in ((RELEASE_LIKE, case(RELEASE_LIKE)), (OTHER_SIZES, case(OTHER_SIZES, "elsewhere"))):
        answers = [made.expected(name).ids for name in made.recordings]
        assert len({tuple(ids) for ids in answers}) == len(answers)
        ended = [ids[-1] == shape.text_end for ids in answers]
        assert any(ended)
        assert not all(ended)


whole_prompts = pytest.mark.parametrize("running", SETUPS[:1], indirect=True, ids=lambda setup: setup.name)


def test_one_by_one(running: Running) -> None:
    names = list(running.case.recordings)
    running.check("one by one", names, [running.engine.generate(running.case.request(name))[0] for name in names])


def test_all_at_once(running: Running) -> None:
    names = list(running.case.recordings)[::-1]
    running.check("all at once", names, running.engine.generate(*map(running.case.request, names)))


def test_a_recording_heard_before(running: Running) -> None:
    """The multimodal cache, the encoder cache and the prefix cache know it, and each other's neighbours."""
    names = ["window", "another window", "window", "5 s", "window"]
    for _ in range(2):
        answers = running.engine.generate(*map(running.case.request, names))
        running.check("heard before", names, answers)
    caching = running.setup.options.get("enable_prefix_caching", False)
    assert (answers[0].cached_tokens > 0) == caching


def test_ready_features(running: Running) -> None:
    case = running.case
    extractor = FeatureExtractor.from_checkpoint(case.path, case.speech_tokenizer)
    names = list(case.recordings)
    requests = [case.request(name, extractor(case.recordings[name])) for name in names]
    running.check("ready features", names, running.engine.generate(*requests))
    raw_and_ready = [case.request("5 s"), requests[0], case.request("1.25 s"), requests[names.index("window")]]
    answers = running.engine.generate(*raw_and_ready)
    running.check("raw and ready together", ["5 s", names[0], "1.25 s", "window"], answers)


def test_another_instruction(running: Running) -> None:
    instruction = "请将音频内容转换为文字。 <|im_msg_end|> is not a control token here"
    case = running.case
    prompt = case.reference.tokenizer.prompt(instruction, positions=1)
    waveform = case.recordings["1.25 s"]
    answer = running.engine.generate(Request(prompt, (waveform, 16000), {"max_tokens": 8}))[0]
    expected = case.reference.transcribe(waveform, instruction, 8)
    assert (answer.prompt_tokens, answer.ids) == (expected.prompt_tokens, expected.ids)
    assert case.expected("1.25 s").ids[:8] != expected.ids, "the instruction must make a difference"


@whole_prompts
def test_another_sampling_rate(running: Running) -> None:
    """A tone of 300 Hz at 8 kHz is heard as it is at 16 kHz: the same positions, and an answer."""
    tone = np.sin(2 * np.pi * 300 * np.arange(8000) / 8000).astype(np.float32)
    prompt = running.case.request("5 s").prompt
    answer = running.engine.generate(Request(prompt, (tone, 8000), {"max_tokens": 1}))[0]
    assert answer.prompt_tokens == len(running.case.reference.tokenizer.prompt(INSTRUCTION, positions=13))


def test_speech_ids_are_never_said(running: Running) -> None:
    hot = {"temperature": 2.0, "ignore_eos": True, "max_tokens": 50}
    requests = [running.case.request("1.25 s", seed=seed, **hot) for seed in range(8)]
    said = [id_ for answer in running.engine.generate(*requests) for id_ in answer.ids]
    assert len(said) == 8 * 50
    assert len(set(said)) > 100, "hot enough to say all kinds of things"
    assert max(said) < running.case.shape.offset


@whole_prompts
def test_speech_ids_are_not_said_when_the_highest_ids_are_pushed(running: Running) -> None:
    hot = {"temperature": 2.0, "ignore_eos": True, "max_tokens": 10, "extra_args": {"push": True}}
    answer = running.engine.generate(running.case.request("5 s", **hot))[0]
    offset = running.case.shape.offset
    assert set(answer.ids) <= set(range(offset - 5, offset))


@whole_prompts
@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "temperature": 1.0, "seed": 1},
        {"min_tokens": 10, "max_tokens": 10},
        {"logit_bias": {40: 100.0}},
        {"allowed_token_ids": [40, 41, 42]},
        {"bad_words": ["a"]},
        {"logprobs": 5, "prompt_logprobs": 1},
    ],
    ids=lambda sampling: ", ".join(sampling),
)
def test_sampling_options_hold(running: Running, sampling: dict[str, Any]) -> None:
    answer = running.engine.generate(running.case.request("1.25 s", **sampling))[0]
    assert answer.ids
    assert max(answer.ids) < running.case.shape.offset
    if "logit_bias" in sampling:
        assert set(answer.ids) == {40}
    if "allowed_token_ids" in sampling:
        assert set(answer.ids) <= {40, 41, 42}
    if "min_tokens" in sampling:
        assert len(answer.ids) == 10


@whole_prompts
@pytest.mark.parametrize("option", ["logit_bias", "allowed_token_ids"])
def test_asking_for_a_speech_id_is_refused(running: Running, option: str) -> None:
    speech_id = running.case.shape.offset + 3
    value: Any = {speech_id: 100.0} if option == "logit_bias" else [speech_id]
    with pytest.raises(EngineError, match="vocab"):
        running.engine.generate(running.case.request("1.25 s", **{option: value}))
    running.check("after a refusal", ["1.25 s"], running.engine.generate(running.case.request("1.25 s")))


def test_audio_that_cannot_be_taken_is_refused(running: Running) -> None:
    case = running.case
    extractor = FeatureExtractor.from_checkpoint(case.path, case.speech_tokenizer)
    features = extractor(case.recordings["1.25 s"])
    bad = [
        {key: value for key, value in features.items() if key != "window_samples"},
        features | {"whisper_mels": features["whisper_mels"][:-1]},
        features | {"whisper_mels": features["whisper_mels"][:, :-1]},
        features | {"window_samples": np.array([0])},
        features | {"window_samples": np.array([extractor.window_samples + 1])},
        extractor(case.recordings["5 s"]) | {"window_samples": features["window_samples"]},
    ]
    for audio in bad:
        with pytest.raises(EngineError):
            running.engine.generate(case.request("1.25 s", audio))
    with pytest.raises(EngineError):
        running.engine.generate(Request(case.request("5 s").prompt, (np.zeros(0, np.float32), 16000)))
    running.check("after a refusal", ["1.25 s"], running.engine.generate(case.request("1.25 s")))
