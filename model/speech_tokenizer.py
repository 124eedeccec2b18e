"""The speech tokenizer: log-mel to discrete codes, 12.5 a second (the encoder half of THUDM/glm-4-voice-tokenizer).

A Whisper encoder with causal convolutions and block-causal attention, average-pooled and quantised after one of its
layers; later layers are never needed. Plain torch in float32: in half precision, and in TF32, the choice of the nearest
code flips.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from model.features import ENCODER_STRIDE

KERNEL_SIZE = 3  # of both convolutions, as in Whisper


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """The keys of the tokenizer's ``config.json`` that its encoder half depends on, under their own names."""

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int
    pooling_kernel_size: int
    pooling_position: int  # also the number of layers that are run
    quantize_position: int
    quantize_vocab_size: int
    quantize_causal_block_size: int

    @classmethod
    def from_file(cls, path: Path) -> "SpeechTokenizerConfig":
        """Read ``config.json``; raises OSError, ValueError where it is missing or describes another kind of model."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in cls.__dataclass_fields__ if key not in raw]
        if missing:
            raise ValueError(f"{path} has no {missing[0]!r}: not a speech tokenizer's configuration")
        config = cls(**{key: raw[key] for key in cls.__dataclass_fields__})
        # The rules that the weights were trained under; a file that asks for others would be computed wrongly.
        if config.quantize_position != config.pooling_position:
            raise ValueError(f"{path}: quantize_position and pooling_position must be equal")
        if not raw.get("encoder_causal_convolution", True) or raw.get("pooling_type", "avg") != "avg":
            raise ValueError(f"{path}: only causal convolutions and average pooling are known")
        return config


class _Attention(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.heads = config.encoder_attention_heads
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            proj(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        joined = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.out_proj(joined)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), mask)
        return hidden + self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))  # type: ignore[no-any-return]


class SpeechTokenizer(nn.Module):
    """Mel frames to codes; parameters bear the checkpoint's names (less ``model.encoder.``) and are always float32."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, KERNEL_SIZE)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, KERNEL_SIZE, stride=ENCODER_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.pooling_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, config.d_model)
        self.float()

    def pooled_states(self, mels: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Log-mel [b, num_mel_bins, f] of which ``num_frames`` [b] are speech -> [b, f / 8, d_model], to be quantised.

        f is a multiple of 8. Frames past an item's own are padding: they are attended to by none, so an item's rows do
        not depend on how far its batch is padded.
        """
        hidden = mels.float()
        for conv in (self.conv1, self.conv2):
            hidden = F.gelu(conv(F.pad(hidden, (KERNEL_SIZE - 1, 0))))
        hidden = hidden.transpose(1, 2)
        index = torch.arange(hidden.shape[1], device=hidden.device)
        hidden = hidden + self.embed_positions(index)

        block = index // self.config.quantize_causal_block_size
        visible = (index[None, :] <= index[:, None]) | (block[None, :] == block[:, None])
        speech = index * ENCODER_STRIDE < num_frames[:, None]
        mask = visible & speech[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return F.avg_pool1d(hidden.transpose(1, 2), self.config.pooling_kernel_size).transpose(1, 2)

    def forward(self, mels: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """As :meth:`pooled_states`, each row replaced by the index of the nearest code: [b, f / 8], int64."""
        with _exact_float32():
            rows = self.pooled_states(mels, num_frames)
            codes = self.codebook.weight
            # Squared L2 less the row's own norm, which is the same for every code.
            return torch.argmin(codes.pow(2).sum(1) - 2 * rows @ codes.T, dim=-1)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep TF32 and bf16 shortcuts out of float32 convolutions and products, whatever the process has allowed."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
