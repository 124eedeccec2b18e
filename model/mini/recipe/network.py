"""The decoder that is trained: Qwen2's main stack over Kimi-Audio's summed streams, with the release's tensor names.

Written out rather than taken from transformers for speed on a CPU: the last layer answers only where text is predicted,
and padding never needs a mask because it stands on the right of a causal model. `tests/model/mini` holds its numbers to
those of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .alignment import best_path


@dataclass(frozen=True)
class Sizes:
    """Everything that the shape of the weights depends on."""

    text_vocab: int
    codes: int = 512
    hidden: int = 384
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 1024
    adaptor_input: int = 1536
    ctc_layer: int = 2  # the auxiliary CTC loss reads the output of this many layers
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0


@dataclass
class Batch:
    """Prompts and texts, right-padded; b samples, at most l positions each, n audio positions in all."""

    ids: Tensor  # [b, l] the one id of every position; at audio positions the speech id
    audio_at: Tensor  # [n] flat indices of the audio positions
    rows: Tensor  # [n, adaptor_input] Whisper's rows
    use_speech: Tensor  # [n, 1] 0 where the speech token is dropped
    use_whisper: Tensor  # [n, 1] 0 where Whisper's row is dropped
    answers_from: int  # no position before this one predicts text, in any sample
    labels: Tensor  # [b, l - answers_from] next text id, or -100
    audio_starts: Tensor  # [b] position of a sample's first audio position
    audio_lengths: Tensor  # [b]
    text: Tensor  # text ids of all samples end to end, for CTC
    text_lengths: Tensor  # [b]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, s: Sizes) -> None:
        """Make the four projections."""
        super().__init__()
        self.heads, self.kv_heads, self.width = s.heads, s.kv_heads, s.hidden // s.heads
        self.q_proj = nn.Linear(s.hidden, s.heads * self.width)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * self.width)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * self.width)
        self.o_proj = nn.Linear(s.heads * self.width, s.hidden, bias=False)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, start: int) -> Tensor:
        """[b, l, hidden] -> [b, l - start, hidden]: what the positions from `start` on attend to."""
        b, length, _ = h.shape
        q = self.q_proj(h[:, start:]).view(b, length - start, self.heads, self.width).transpose(1, 2)
        k = self.k_proj(h).view(b, length, self.kv_heads, self.width).transpose(1, 2)
        v = self.v_proj(h).view(b, length, self.kv_heads, self.width).transpose(1, 2)
        q, k = _rotate(q, cos[start:], sin[start:]), _rotate(k, cos, sin)
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        mask = None
        if start:
            index = torch.arange(length, device=h.device)
            mask = index[None, :] <= index[start:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(b, length - start, -1))  # type: ignore[no-any-return]

    def step(
        self, h: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `forward` for one position that follows those in `cache`, or for a whole prompt without one."""
        b, length, _ = h.shape
        q = self.q_proj(h).view(b, length, self.heads, self.width).transpose(1, 2)
        k = self.k_proj(h).view(b, length, self.kv_heads, self.width).transpose(1, 2)
        v = self.v_proj(h).view(b, length, self.kv_heads, self.width).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if cache:
            k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        keys, values = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, keys, values, is_causal=cache is None)
        return self.o_proj(out.transpose(1, 2).reshape(b, length, -1)), (k, v)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, s: Sizes) -> None:
        """Make the three projections."""
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, s: Sizes) -> None:
        """Make attention, MLP and their norms."""
        super().__init__()
        self.self_attn = Attention(s)
        self.mlp = Mlp(s)
        self.input_layernorm = nn.RMSNorm(s.hidden, s.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.rms_norm_eps)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, start: int = 0) -> Tensor:
        """[b, l, hidden] -> [b, l - start, hidden]."""
        h = h[:, start:] + self.self_attn(self.input_layernorm(h), cos, sin, start)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]

    def step(
        self, h: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `forward`, going on from a cache."""
        attended, cache = self.self_attn.step(self.input_layernorm(h), cos, sin, cache)
        h = h + attended
        return h + self.mlp(self.post_attention_layernorm(h)), cache


class Adaptor(nn.Module):
    """Whisper's rows to the decoder's width; indices 1 and 2 are the release's activation and dropout."""

    def __init__(self, s: Sizes) -> None:
        """Make both projections and the norm."""
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "0": nn.Linear(s.adaptor_input, s.hidden),
                "3": nn.Linear(s.hidden, s.hidden),
                "4": nn.LayerNorm(s.hidden, s.rms_norm_eps),
            }
        )

    def forward(self, rows: Tensor) -> Tensor:
        """[n, adaptor_input] -> [n, hidden]."""
        return self.layers["4"](self.layers["3"](F.silu(self.layers["0"](rows))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Streams in, text logits out."""

    def __init__(self, sizes: Sizes, blank: int) -> None:
        """Make all weights; `blank` is the id that fills the other stream."""
        super().__init__()
        self.sizes, self.blank = sizes, blank
        self.embed_tokens = nn.Embedding(sizes.text_vocab + sizes.codes, sizes.hidden)
        self.vq_adaptor = Adaptor(sizes)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden, sizes.rms_norm_eps)
        self.lm_head = nn.Linear(sizes.hidden, sizes.text_vocab, bias=False)
        self.ctc_norm = nn.RMSNorm(sizes.hidden, sizes.rms_norm_eps)
        self.ctc_head = nn.Linear(sizes.hidden, sizes.text_vocab)  # the id `blank` is CTC's blank
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(p, std=0.5 if name == "embed_tokens.weight" else scale * p.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        nn.init.zeros_(self.lm_head.weight)
        nn.init.zeros_(self.ctc_head.weight)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [l, head width] of the given positions."""
        width = self.sizes.hidden // self.sizes.heads
        frequencies = self.sizes.rope_theta ** (-torch.arange(0, width, 2).float() / width)
        angles = positions.float()[:, None] * frequencies.repeat(2)
        return angles.cos(), angles.sin()

    def audio_inputs(self, speech_ids: Tensor, rows: Tensor, use_speech: Tensor, use_whisper: Tensor) -> Tensor:
        """(E[s] + adaptor(whisper)) * sqrt(2) + E[blank], [n, hidden]."""
        streams = self.embed_tokens(speech_ids) * use_speech + self.vq_adaptor(rows) * use_whisper
        return streams * math.sqrt(2) + self.embed_tokens.weight[self.blank]  # type: ignore[no-any-return]

    def inputs(self, batch: Batch) -> Tensor:
        """What enters the first layer, [b, l, hidden]."""
        flat = batch.ids.flatten()
        h = self.embed_tokens(flat) + self.embed_tokens.weight[self.blank]
        audio = self.audio_inputs(flat[batch.audio_at], batch.rows, batch.use_speech, batch.use_whisper)
        return h.index_copy(0, batch.audio_at, audio).view(*batch.ids.shape, -1)  # type: ignore[no-any-return]

    def attention_of_guided_head(self, h: Tensor, batch: Batch) -> Tensor:
        """Log attention of the first head after the CTC layer, from every position that predicts a text id: [n, l]."""
        layer, width = self.layers[self.sizes.ctc_layer], self.sizes.hidden // self.sizes.heads
        assert isinstance(layer, Layer)
        x, a, start = layer.input_layernorm(h), layer.self_attn, batch.answers_from
        cos, sin = self.rotary(torch.arange(h.shape[1]))
        q = _rotate(F.linear(x[:, start:], a.q_proj.weight[:width], a.q_proj.bias[:width]), cos[start:], sin[start:])
        k = _rotate(F.linear(x, a.k_proj.weight[:width], a.k_proj.bias[:width]), cos, sin)
        scores = q @ k.mT * width**-0.5
        index = torch.arange(h.shape[1])
        scores = scores.masked_fill(index[None, :] > index[start:, None], -torch.inf)
        predicts = (batch.labels >= 0) & (batch.labels < self.blank)
        return F.log_softmax(scores[predicts], -1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Text logits [b, l - answers_from, text_vocab], CTC logits [n, text_vocab], the output of the CTC layer."""
        h = self.inputs(batch)
        cos, sin = self.rotary(torch.arange(h.shape[1]))
        middle = h
        for i, layer in enumerate(self.layers):
            h = layer(h, cos, sin, batch.answers_from if i == len(self.layers) - 1 else 0)
            if i + 1 == self.sizes.ctc_layer:
                middle = h
        ctc = self.ctc_head(self.ctc_norm(middle.flatten(0, 1)[batch.audio_at]))
        return self.lm_head(self.norm(h)), ctc, middle


def guide_loss(log_attention: Tensor, ctc_log_probs: list[Tensor], batch: Batch, blank: int) -> Tensor:
    """How far the guided head is from looking where the CTC path says the next piece, within a position either way."""
    targets = []
    texts = batch.text.split(batch.text_lengths.tolist())
    for log_probs, text, start in zip(ctc_log_probs, texts, batch.audio_starts.tolist(), strict=True):
        frames = torch.from_numpy(best_path(log_probs.numpy(), text.numpy(), blank))
        targets.append(torch.where(frames >= 0, frames + start, -1))
    wanted = torch.cat(targets)
    known = wanted >= 0
    if not known.any():
        return log_attention.new_zeros(())
    near = wanted[known][:, None] + torch.tensor([-1, 0, 1])
    return -log_attention[known].gather(1, near).logsumexp(1).mean()


def losses(model: Decoder, batch: Batch, guide: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of the text, mean CTC loss a text token, and the loss of the guided head if it is wanted."""
    logits, ctc_logits, middle = model(batch)
    text = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    longest = int(batch.audio_lengths.max())
    log_probs = F.log_softmax(ctc_logits, -1)
    each = log_probs.split(batch.audio_lengths.tolist())
    padded = nn.utils.rnn.pad_sequence(each)
    ctc = F.ctc_loss(
        padded[:longest],
        batch.text,
        batch.audio_lengths,
        batch.text_lengths,
        blank=model.blank,
        reduction="sum",
        zero_infinity=True,
    )
    guided = text.new_zeros(())
    if guide:
        paths = [x.detach() for x in each]
        guided = guide_loss(model.attention_of_guided_head(middle, batch), paths, batch, model.blank)
    return text, ctc / max(1, int(batch.text_lengths.sum())), guided
