"""Speech tokens are the reference's, alone and batched with others.

The codebooks here are large for the size of the encoder, so that small errors change codes.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from model.features import FeatureExtractor
from model.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from tests.model.checkpoints import OTHER_SIZES, RELEASE_LIKE, TINY
from tests.model.conftest import Case
from tests.model.reference import read_tensors

SHAPES = {
    "release like": replace(RELEASE_LIKE, codes=16384),
    "small blocks": replace(OTHER_SIZES, codes=4096),
    "one layer, block of one frame": replace(TINY, block=1, codes=4096, window_seconds=10),
    "block longer than the window": replace(TINY, block=5000, codes=4096, window_seconds=10),
}


class Both:
    """model's tokenizer with a checkpoint's weights, and the recordings' features and expected codes."""

    def __init__(self, case: Case) -> None:
        assert case.speech_tokenizer is not None
        self.tokenizer = SpeechTokenizer(SpeechTokenizerConfig.from_file(case.speech_tokenizer / "config.json"))
        weights = read_tensors(case.speech_tokenizer, "model.encoder.")
        self.tokenizer.load_state_dict({name: weights[name] for name in self.tokenizer.state_dict()})
        extractor = FeatureExtractor.from_checkpoint(case.path, case.speech_tokenizer)
        size = extractor.window_samples
        self.windows = {name: x for name, x in case.recordings.items() if len(x) <= size}
        self.mels = {name: torch.from_numpy(extractor(x)["speech_mels"]) for name, x in self.windows.items()}
        self.expected = {name: case.reference.codes(x) for name, x in self.windows.items()}

    @torch.no_grad()
    def codes(self, names: list[str], padding: float = 0.0) -> list[list[int]]:
        mels = pad_sequence([self.mels[name] for name in names], batch_first=True, padding_value=padding)
        frames = torch.tensor([-(-len(self.windows[name]) // 160) for name in names])
        codes = self.tokenizer(mels.transpose(1, 2), frames)
        return [row[: len(self.mels[name]) // 8].tolist() for name, row in zip(names, codes, strict=True)]


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, case: Callable[..., Case]) -> Both:
    return Both(case(SHAPES[request.param]))


def test_codes_tell_recordings_apart(both: Both) -> None:
    assert len({tuple(codes) for codes in both.expected.values()}) == len(both.expected)
    assert len(set(both.expected["another window"])) > 10


def test_alone(both: Both) -> None:
    for name, codes in both.expected.items():
        assert both.codes([name]) == [codes], name


@pytest.mark.parametrize("padding", [0.0, 3.0])
def test_batched_with_other_lengths(both: Both, padding: float) -> None:
    names = list(both.expected)
    assert both.codes(names, padding) == list(both.expected.values())


def test_whatever_precision_the_process_allows(both: Both) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert both.codes(["another window"]) == [both.expected["another window"]]
        assert torch.get_float32_matmul_precision() == "medium", "left as it was found"
    finally:
        torch.set_float32_matmul_precision(before)


def test_half_precision_would_show(both: Both) -> None:
    """What the tests above can see: weights rounded to bfloat16 change codes."""
    weights = {key: tensor.clone() for key, tensor in both.tokenizer.state_dict().items()}
    both.tokenizer.load_state_dict({key: tensor.bfloat16() for key, tensor in weights.items()})
    try:
        assert both.codes(list(both.expected)) != list(both.expected.values())
    finally:
        both.tokenizer.load_state_dict(weights)
