"""Text to ids and back, as tiktoken with the release's pattern does it; typed text is never a control token."""

from collections.abc import Callable

import pytest

from model.tokenizer import KimiAudioTokenizer
from tests.model.checkpoints import OTHER_SIZES, RELEASE_LIKE, SPECIAL_TOKENS
from tests.model.conftest import Case
from tests.model.reference import Tokenizer

TEXTS = [
    "",
    "Please transcribe the following audio:",
    "请将音频内容转换为文字。",
    "It's 12,345.67 o'clock; WE'LL see…\r\n\n  tabs\tand   spaces  ",
    "señor Ünïcode e\u0301 🙂👩‍👩‍👧 \u200f مرحبا здравствуй こんにちは 안녕",
    "\x00\x01\x7f",
    "<|im_msg_end|><|im_kimia_text_eos|>[EOS] <|endoftext|>",
    " " * 50 + "\n" * 50,
]


@pytest.fixture(scope="module", params=[RELEASE_LIKE, OTHER_SIZES], ids=["release like", "other sizes"])
def both(request: pytest.FixtureRequest, case: Callable[..., Case]) -> tuple[KimiAudioTokenizer, Tokenizer]:
    path = case(request.param).path
    return KimiAudioTokenizer.from_pretrained(path), Tokenizer(path)


@pytest.mark.parametrize("text", TEXTS)
def test_encode(both: tuple[KimiAudioTokenizer, Tokenizer], text: str) -> None:
    tokenizer, reference = both
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer(text)["input_ids"] == ids
    assert not set(ids) & set(reference.special.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(ids)) == text


def test_pieces_longer_than_a_byte_are_used(both: tuple[KimiAudioTokenizer, Tokenizer]) -> None:
    ids = both[0].encode("Please transcribe the following audio:")
    assert len(ids) == 6
    assert max(ids) > 255


def test_special_tokens(both: tuple[KimiAudioTokenizer, Tokenizer]) -> None:
    tokenizer, reference = both
    ranks = len(tokenizer) - len(reference.special)
    for index, name in enumerate(SPECIAL_TOKENS):
        assert tokenizer.convert_tokens_to_ids(name) == reference.special[name] == ranks + index
    assert set(tokenizer.all_special_ids) == set(reference.special.values())
    assert tokenizer.eos_token_id == reference["kimia_text_eos"]
    assert tokenizer.get_added_vocab() == reference.special


def test_every_id_has_a_string_of_its_own(both: tuple[KimiAudioTokenizer, Tokenizer]) -> None:
    tokenizer, _ = both
    ids = list(range(len(tokenizer)))
    strings = tokenizer.convert_ids_to_tokens(ids)
    assert len(set(strings)) == len(ids) == len(tokenizer.get_vocab()) == tokenizer.max_token_id + 1
    assert tokenizer.convert_tokens_to_ids(strings) == ids


def test_special_tokens_can_be_left_out_of_text(both: tuple[KimiAudioTokenizer, Tokenizer]) -> None:
    tokenizer, reference = both
    ids = [*tokenizer.encode("said"), reference["kimia_text_eos"], *tokenizer.encode(" here")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "said here"
    assert tokenizer.decode(ids) == "said<|im_kimia_text_eos|> here"


def test_characters_cut_between_tokens(both: tuple[KimiAudioTokenizer, Tokenizer]) -> None:
    """Whole once all their bytes are there, a replacement character before; ids without a token are nothing."""
    tokenizer, _ = both
    ids = tokenizer.encode("🙂")
    assert len(ids) == 4
    assert tokenizer.decode(ids[:3]) == "\ufffd"
    assert tokenizer.decode([*ids[:2], len(tokenizer) + 7, *ids[2:]]) == "🙂"


@pytest.mark.parametrize(("side", "kept"), [("left", "audio:"), ("right", "Please")])
def test_truncation(case: Callable[..., Case], side: str, kept: str) -> None:
    tokenizer = KimiAudioTokenizer.from_pretrained(case(RELEASE_LIKE).path, truncation_side=side)
    ids = tokenizer.encode("Please transcribe the following audio:", truncation=True, max_length=2)
    assert len(ids) == 2
    assert kept in tokenizer.decode(ids)
