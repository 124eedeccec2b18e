"""Byte-pair ranks for tiktoken, trained on the texts, and the special tokens in the release's order."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

import regex  # type: ignore[import-untyped]
import tiktoken

RANKS: Final = 1024  # 256 bytes and 768 merges
SPECIAL_COUNT: Final = 64
PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
INSTRUCTION: Final = "Please transcribe the following audio:"
INSTRUCTION_WEIGHT: Final = 3000  # its words become single tokens, which keeps every prompt short
_NAMED: Final = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_msg_end|>",
    3: "<|im_user_msg_start|>",
    4: "<|im_assistant_msg_start|>",
    9: "[EOT]",
    18: "<|im_media_begin|>",
    20: "<|im_media_end|>",
    23: "<|im_kimia_text_blank|>",
    24: "<|im_kimia_text_eos|>",
    27: "<|im_kimia_user_msg_start|>",
    28: "<|im_kimia_assistant_msg_start|>",
    32: "<|im_kimia_speech_ct_id|>",
    33: "<|im_kimia_speech_ctd_id|>",
}


def special_tokens() -> list[str]:
    """The special tokens, index by index as in the release; the gaps are reserved ones, numbered in order."""
    reserved = (f"<|reserved_token_{i}|>" for i in range(SPECIAL_COUNT))
    return [_NAMED.get(i) or next(reserved) for i in range(SPECIAL_COUNT)]


def train_ranks(texts: Iterable[str], size: int = RANKS) -> list[bytes]:
    """The most frequent merges of the pieces that tiktoken's pattern cuts `texts` into; index is rank."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(regex.findall(PATTERN, text))
    for piece in regex.findall(PATTERN, INSTRUCTION):
        counts[piece] += INSTRUCTION_WEIGHT
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in counts.items()]
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    holders: dict[tuple[bytes, bytes], set[int]] = {}
    for index, (parts, n) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += n
            holders.setdefault(pair, set()).add(index)
    ranks = [bytes([i]) for i in range(256)]
    known = set(ranks)
    while len(ranks) < size and pairs:
        best = max(pairs, key=lambda p: (pairs[p], p))
        if best[0] + best[1] not in known:
            ranks.append(best[0] + best[1])
            known.add(ranks[-1])
        for index in holders.pop(best, set()):
            parts, n = words[index]
            for pair in pairwise(parts):
                pairs[pair] -= n
            merged: list[bytes] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] = best[0] + best[1]
                else:
                    merged.append(part)
            words[index] = (merged, n)
            for pair in pairwise(merged):
                pairs[pair] += n
                holders.setdefault(pair, set()).add(index)
        del pairs[best]
    return ranks


class Vocabulary:
    """Text to ids and back, and the ids of the special tokens."""

    def __init__(self, ranks: list[bytes]) -> None:
        """Make the encoder of `ranks`."""
        self.ranks = ranks
        self.encoding = tiktoken.Encoding(
            "mini", pat_str=PATTERN, mergeable_ranks={b: i for i, b in enumerate(ranks)}, special_tokens={}
        )
        self.special = {name: len(ranks) + i for i, name in enumerate(special_tokens())}
        self.size = len(ranks) + SPECIAL_COUNT
        self.blank = self.special["<|im_kimia_text_blank|>"]
        self.end = self.special["<|im_kimia_text_eos|>"]

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a `tiktoken.model`."""
        return cls([base64.b64decode(line.split()[0]) for line in path.read_text().splitlines()])

    def save(self, folder: Path) -> None:
        """Write `tiktoken.model` and `tokenizer_config.json`."""
        lines = (f"{base64.b64encode(b).decode()} {i}\n" for i, b in enumerate(self.ranks))
        (folder / "tiktoken.model").write_text("".join(lines))
        tokens = special_tokens()
        config = {
            "added_tokens_decoder": {
                str(len(self.ranks) + i): {"content": t, "special": True} for i, t in enumerate(tokens)
            },
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
            "pad_token": tokens[-1],
            "tokenizer_class": "TikTokenTokenizer",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids below the special ones."""
        return self.encoding.decode([i for i in ids if i < len(self.ranks)], errors="replace")

    def prompt(self, instruction: str = INSTRUCTION) -> tuple[list[int], list[int]]:
        """The ids before the audio positions and those after them."""
        named = self.special
        before = [named["<|im_kimia_user_msg_start|>"], *self.encode(instruction), named["<|im_media_begin|>"]]
        after = [
            named[name]
            for name in (
                "<|im_media_end|>",
                "<|im_kimia_speech_ct_id|>",
                "<|im_msg_end|>",
                "<|im_kimia_assistant_msg_start|>",
            )
        ]
        return before, after
