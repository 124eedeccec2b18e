"""Training of the small speech tokenizer: a causal encoder that predicts Whisper's rows and the words, then k-means.

Regression onto Whisper's rows gives a dense target, so minutes suffice; CTC keeps the words in view. The weights are
rounded to float16 before the codebook is made and before any code is computed: what is stored is what was used.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import FRAMES_JOINED, FRAMES_PER_POSITION
from model.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig

from . import dataset
from .encoder import preprocessor_config
from .optimizer import Optimizer
from .vocabulary import Vocabulary

CODES: Final = 512
CONFIG: Final = SpeechTokenizerConfig(
    d_model=192,
    encoder_attention_heads=3,
    encoder_ffn_dim=768,
    num_mel_bins=dataset.MELS,
    max_source_positions=1500,
    pooling_kernel_size=FRAMES_JOINED,
    pooling_position=2,
    quantize_position=2,
    quantize_vocab_size=CODES,
    quantize_causal_block_size=200,
)
BATCH_POSITIONS: Final = 320
CTC_WEIGHT: Final = 0.1
OUTLIER: Final = 4.0  # standard deviations at which a target is cut off
KMEANS_ROUNDS: Final = 12


def _sinusoids(length: int, width: int) -> Tensor:
    """Whisper's position table."""
    scale = torch.exp(-np.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * scale
    return torch.cat((angles.sin(), angles.cos()), 1)


class _Heads(nn.Module):
    """What the pooled states must tell: Whisper's joined rows, and the text."""

    def __init__(self, rows: int, text: int) -> None:
        super().__init__()
        self.whisper = nn.Linear(CONFIG.d_model, rows)
        self.text = nn.Linear(CONFIG.d_model, text)


def _clips(root: Path, names: Sequence[str]) -> list[tuple[Tensor, Tensor, str]]:
    """(speech mels [mels, frames] in float16, Whisper's rows [positions, rows], text) of every sample with words."""
    clips = []
    for name in names:
        shard = dataset.load_shard(root / "audio" / f"{name}.npz")
        rows = np.load(root / "whisper" / f"{name}.npy")
        rows = rows.reshape(-1, FRAMES_JOINED * rows.shape[1])
        parts = np.split(rows, np.cumsum(shard.positions)[:-1])
        for waveform, part, text in zip(shard.waveforms(), parts, shard.texts, strict=True):
            if text:
                clips.append((dataset.speech_mels(waveform).half(), torch.from_numpy(part), text))
    return clips


def _batches(clips: list[tuple[Tensor, Tensor, str]], r: random.Random) -> Iterator[list[tuple[Tensor, Tensor, str]]]:
    while True:
        order = sorted(r.sample(range(len(clips)), len(clips)), key=lambda i: len(clips[i][1]))
        groups: list[list[int]] = [[]]
        for i in order:
            if groups[-1] and len(clips[i][1]) * (len(groups[-1]) + 1) > BATCH_POSITIONS:
                groups.append([])
            groups[-1].append(i)
        r.shuffle(groups)
        for group in groups:
            yield [clips[i] for i in group]


def train(root: Path, names: Sequence[str], vocabulary: Vocabulary, folder: Path, cpu_seconds: float) -> None:
    """Train on the named shards for so many seconds of processor time, make the codebook, write the checkpoint."""
    torch.manual_seed(0)
    r = random.Random(0)
    clips = _clips(root, names)
    width = clips[0][1].shape[1]
    some = torch.cat([c[1][:50].float() for c in clips[:400]])
    mean, std = some.mean(0), some.std(0) + 1e-3
    model, heads = SpeechTokenizer(CONFIG), _Heads(width, vocabulary.size)
    model.embed_positions.weight.data = _sinusoids(CONFIG.max_source_positions, CONFIG.d_model)
    model.embed_positions.weight.requires_grad = False
    optimizer = Optimizer(nn.ModuleDict({"model": model, "heads": heads}), world=1, rank=0)
    began = time.process_time()
    for step, batch in enumerate(_batches(clips, r)):
        done = (time.process_time() - began) / cpu_seconds
        if done >= 1:
            break
        regression, ctc = _losses(model, heads, batch, vocabulary, (mean, std))
        (regression + CTC_WEIGHT * ctc).backward()
        optimizer.clip(2.0)
        optimizer.step(min(1.0, (step + 1) / 30) * (1 - done))
        if step % 50 == 49:
            print(f"speech tokenizer step {step} {done:.0%} regression {regression:.3f} ctc {ctc:.2f}", flush=True)
    model.eval()
    for p in model.parameters():
        p.data = p.data.half().float()
    states = torch.cat(list(_states(model, clips[:1500])))
    model.codebook.weight.data = k_means(states, CODES).half().float()
    save(model, folder)


def _losses(
    model: SpeechTokenizer,
    heads: _Heads,
    batch: list[tuple[Tensor, Tensor, str]],
    vocabulary: Vocabulary,
    scale: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    frames = torch.tensor([c[0].shape[1] for c in batch])
    mels = nn.utils.rnn.pad_sequence([c[0].T.float() for c in batch], batch_first=True).transpose(1, 2)
    states = model.pooled_states(mels, frames)
    lengths = frames // FRAMES_PER_POSITION
    inside = torch.arange(states.shape[1]) < lengths[:, None]
    rows = torch.cat([c[1] for c in batch]).float()
    regression = F.mse_loss(heads.whisper(states[inside]), ((rows - scale[0]) / scale[1]).clamp(-OUTLIER, OUTLIER))
    texts = [torch.tensor(vocabulary.encode(c[2])) for c in batch]
    log_probs = F.log_softmax(heads.text(states), -1).transpose(0, 1)
    sizes = torch.tensor([len(t) for t in texts])
    loss = F.ctc_loss(
        log_probs, torch.cat(texts), lengths, sizes, vocabulary.blank, reduction="sum", zero_infinity=True
    )
    return regression, loss / sizes.sum()


@torch.inference_mode()
def _states(model: SpeechTokenizer, clips: Sequence[tuple[Tensor, Tensor, str]]) -> Iterator[Tensor]:
    for mels, _, _ in clips:
        yield model.pooled_states(mels[None].float(), torch.tensor([mels.shape[1]]))[0]


def k_means(states: Tensor, count: int) -> Tensor:
    """`count` centres of the rows of `states`; a centre that owns no row starts anew at a random one."""
    g = torch.Generator().manual_seed(0)
    centres = states[torch.randperm(len(states), generator=g)[:count]].clone()
    if len(centres) < count:
        centres = torch.cat([centres, torch.randn(count - len(centres), states.shape[1], generator=g)])
    for _ in range(KMEANS_ROUNDS):
        nearest = torch.argmin(centres.pow(2).sum(1) - 2 * states @ centres.T, 1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, states)
        sizes = torch.bincount(nearest, minlength=count)
        fresh = states[torch.randint(len(states), (count,), generator=g)]
        centres = torch.where((sizes > 0)[:, None], sums / sizes.clamp(min=1)[:, None], fresh)
    return centres


def save(model: SpeechTokenizer, folder: Path) -> None:
    """Write weights and configuration in the layout of glm-4-voice-tokenizer; float16 holds the weights exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.encoder.{k}": v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config: dict[str, Any] = {
        "architectures": ["WhisperVQForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "encoder_layers": CONFIG.pooling_position,
        "decoder_layers": 1,
        "decoder_attention_heads": CONFIG.encoder_attention_heads,
        "decoder_ffn_dim": CONFIG.encoder_ffn_dim,
        "vocab_size": 51864,
        "pooling_type": "avg",
        "quantize_encoder_only": True,
        "quantize_causal_encoder": False,
        "encoder_causal_attention": False,
        "encoder_causal_convolution": True,
        "torch_dtype": "float16",
        **asdict(CONFIG),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(dataset.MELS), indent=1) + "\n")


def load(folder: Path) -> SpeechTokenizer:
    """Read a trained speech tokenizer."""
    model = SpeechTokenizer(SpeechTokenizerConfig.from_file(folder / "config.json"))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("model.encoder."): v.float() for k, v in weights.items()})
    return model.eval()


@torch.inference_mode()
def make_codes(model: SpeechTokenizer, shard: dataset.Shard, path: Path) -> None:
    """Write the codes of a shard."""
    codes = []
    for waveform in shard.waveforms():
        mels = dataset.speech_mels(waveform)
        codes.append(model(mels[None], torch.tensor([mels.shape[1]]))[0].numpy().astype(np.int16))
    dataset.write_atomically(path, lambda part: dataset.save_array(part, np.concatenate(codes)))
