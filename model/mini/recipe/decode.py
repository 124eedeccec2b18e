"""Greedy decoding with the model in training, and its word error rate."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import torch
from torch import Tensor

from .batches import Batcher
from .dataset import Item
from .network import Decoder
from .vocabulary import Vocabulary

LONGEST = 120  # tokens


@torch.inference_mode()
def greedy(model: Decoder, vocabulary: Vocabulary, item: Item, batcher: Batcher) -> str:
    """The words of one sample, by a cache of keys and values."""
    batch = batcher.batch([item], None)
    prompt = batch.ids.shape[1] - int(batch.text_lengths[0])
    h = model.inputs(batch)[:, :prompt]
    caches: list[tuple[Tensor, Tensor] | None] = [None] * len(model.layers)
    cos, sin = model.rotary(torch.arange(prompt + LONGEST))
    out: list[int] = []
    at = 0
    while len(out) < LONGEST:
        for i, layer in enumerate(model.layers):
            h, caches[i] = layer.step(h, cos[at : at + h.shape[1]], sin[at : at + h.shape[1]], caches[i])  # type: ignore[operator]
        at += h.shape[1]
        token = int(model.lm_head(model.norm(h[:, -1])).argmax())
        if token == vocabulary.end:
            break
        out.append(token)
        h = (model.embed_tokens.weight[token] + model.embed_tokens.weight[model.blank])[None, None]
    return vocabulary.decode(out)


def error_rate(model: Decoder, vocabulary: Vocabulary, items: Sequence[Item]) -> tuple[float, list[str]]:
    """Word error rate over `items`, and "said -> heard" of those with errors."""
    batcher = Batcher(vocabulary, 1)
    said = [item.text for item in items]
    heard = [" ".join(greedy(model, vocabulary, item, batcher).split()) for item in items]
    wrong = [f"{a} -> {b}" for a, b in zip(said, heard, strict=True) if a != b]
    return float(jiwer.wer(said, heard)), wrong
