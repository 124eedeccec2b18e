"""Kimi-Audio's tokenizer for vLLM: tiktoken ranks plus special tokens, without transformers and without remote code."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final, overload

import tiktoken
from transformers import BatchEncoding
from vllm.tokenizers.protocol import TokenizerLike

from model.checkpoint import CheckpointError, read_json, resolve

# The Qwen pattern; part of the released checkpoint's definition.
PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class KimiAudioTokenizer(TokenizerLike):  # type: ignore[misc]
    """Text to ids and back. Text is always plain text: ``<|im_msg_end|>`` typed into it never becomes a control token.

    A token's string is its bytes read as Latin-1, so that every id has a string of its own and characters split over
    several tokens come back whole.
    """

    def __init__(self, model_dir: Path, truncation_side: str = "left") -> None:
        self.name_or_path = str(model_dir)
        self._truncation_side = truncation_side
        config = read_json(model_dir / "tokenizer_config.json")
        try:
            self._special = {entry["content"]: int(key) for key, entry in config["added_tokens_decoder"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{model_dir / 'tokenizer_config.json'} has no usable 'added_tokens_decoder'"
            ) from error
        self._encoding = tiktoken.Encoding(
            name=model_dir.name,
            pat_str=PATTERN,
            mergeable_ranks=_ranks(model_dir / "tiktoken.model"),
            special_tokens=self._special,
        )
        self._strings = {rank: token.decode("latin-1") for token, rank in self._encoding._mergeable_ranks.items()}
        self._strings |= {index: content for content, index in self._special.items()}
        self._ids = {string: index for index, string in self._strings.items()}
        self._special_ids = frozenset(self._special.values())
        self._pad = self._special.get(config.get("pad_token", ""), max(self._special_ids))

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *args: object,
        trust_remote_code: bool = False,
        revision: str | None = None,
        download_dir: str | None = None,
        truncation_side: str = "left",
        **kwargs: object,
    ) -> "KimiAudioTokenizer":
        """Load from a checkpoint's folder or Hub id; raises CheckpointError. Remote code is never run."""
        del args, trust_remote_code, download_dir, kwargs
        return cls(resolve(str(path_or_repo_id), revision), truncation_side)

    def special_id(self, name: str) -> int:
        """Id of the special token ``<|name|>``; raises CheckpointError where the checkpoint has none."""
        try:
            return self._special[f"<|{name}|>"]
        except KeyError:
            raise CheckpointError(f"the tokenizer in {self.name_or_path} lacks the special token <|{name}|>") from None

    def num_special_tokens_to_add(self) -> int:
        """None are added to a text."""
        return 0

    @property
    def all_special_tokens(self) -> list[str]:
        """Contents of the special tokens."""
        return list(self._special)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        return list(self._special.values())

    @property
    def bos_token_id(self) -> int:
        """Where a prompt starts: the user's turn."""
        return self.special_id("im_kimia_user_msg_start")

    @property
    def eos_token_id(self) -> int:
        """Where the model's text ends; vLLM stops there by default."""
        return self.special_id("im_kimia_text_eos")

    @property
    def pad_token_id(self) -> int:
        """The padding id of the release; never part of a prompt."""
        return self._pad

    @property
    def is_fast(self) -> bool:
        """True: tokens, special ones among them, are put together by :meth:`convert_tokens_to_string` in one go."""
        return True

    @property
    def vocab_size(self) -> int:
        """Ranks and special tokens."""
        return self._encoding.n_vocab

    @property
    def max_token_id(self) -> int:
        """The highest id there is."""
        return self._encoding.max_token_value

    @property
    def max_chars_per_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._ids))

    @property
    def truncation_side(self) -> str:
        """Which end of a text that is too long is cut: ``left`` or ``right``."""
        return self._truncation_side

    def __len__(self) -> int:
        return self.vocab_size

    def __hash__(self) -> int:
        return hash(id(self))

    def __call__(
        self,
        text: str | list[str],
        text_pair: str | None = None,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        **kwargs: object,
    ) -> BatchEncoding:
        """Ids and attention mask of one text or several; raises ValueError for a text pair."""
        del add_special_tokens, kwargs
        if text_pair is not None:
            raise ValueError("Kimi-Audio's tokenizer takes no text pairs")
        if isinstance(text, str):
            ids = self.encode(text, truncation, max_length)
            return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})
        batch = [self.encode(item, truncation, max_length) for item in text]
        return BatchEncoding({"input_ids": batch, "attention_mask": [[1] * len(ids) for ids in batch]})

    def get_vocab(self) -> dict[str, int]:
        """Token string to id."""
        return dict(self._ids)

    def get_added_vocab(self) -> dict[str, int]:
        """Special token to id."""
        return dict(self._special)

    def encode(
        self,
        text: str,
        truncation: bool | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **kwargs: object,
    ) -> list[int]:
        """Ids of ``text``, no special token among them."""
        del add_special_tokens, kwargs
        ids = self._encoding.encode_ordinary(text)
        if not truncation or max_length is None or len(ids) <= max_length:
            return ids
        return ids[len(ids) - max_length :] if self._truncation_side == "left" else ids[:max_length]

    def decode(self, ids: Sequence[int] | int, skip_special_tokens: bool = False, **kwargs: object) -> str:
        """Text of ``ids``; ids without a token (padding of the vocabulary) are empty, broken UTF-8 reads as U+FFFD."""
        del kwargs
        ids = [ids] if isinstance(ids, int) else ids
        kept = (i for i in ids if i in self._strings and not (skip_special_tokens and i in self._special_ids))
        return self._encoding.decode_bytes(list(kept)).decode("utf-8", errors="replace")

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Ids of token strings; a string that is no token gives the padding id."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, self._pad)
        return [self._ids.get(token, self._pad) for token in tokens]

    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str]:
        """Token strings of ``ids``; empty for an id without a token."""
        return [self._strings.get(i, "") for i in ids if not (skip_special_tokens and i in self._special_ids)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of token strings."""
        return self.decode([self._ids[token] for token in tokens if token in self._ids])


def _ranks(path: Path) -> dict[bytes, int]:
    """Read ``tiktoken.model``: a base64 token and its rank a line."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line.strip())}
    except OSError as error:
        raise CheckpointError(f"the checkpoint lacks {path}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a list of base64 tokens and ranks: {error}") from error
