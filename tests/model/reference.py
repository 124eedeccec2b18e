"""What the released Kimi-Audio computes for speech in, text out: a plain float32 reference.

Built from transformers' Whisper encoder, Whisper feature extractor and Qwen2 stack, tiktoken and safetensors. It shares
no line with `model/`, so that a test which compares the two compares two readings of the same rules.

    waveform -> windows -> Whisper -> adaptor --.
                       `-> speech tokens -------+-> rows of audio input -> Qwen2 -> greedy text
    instruction -> token ids -------------------'

Numbers of things: n samples of a window make N = ceil(n / SAMPLES_PER_POSITION) positions of the decoder.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

HOP = 160  # samples in a log-mel frame
MELS_PER_FRAME = 2  # the second convolution of a Whisper encoder has stride 2
FRAMES_PER_POSITION = 4
SAMPLES_PER_POSITION = HOP * MELS_PER_FRAME * FRAMES_PER_POSITION  # 1280, that is 12.5 positions a second

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Transcript(NamedTuple):
    """A greedy answer: `ids` has the end token in it when the model said it."""

    prompt_tokens: int
    ids: list[int]
    logprobs: list[float]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def read_tensors(directory: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of every safetensors file in `directory` whose names begin with `prefix`, without it, in float32."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                if name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = file.get_tensor(name).float()
    return tensors


def whisper_config(directory: Path) -> WhisperConfig:
    return WhisperConfig(**read_json(directory / "config.json"), attn_implementation="eager")


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's table of positions, [length, channels]: sines in the left half, cosines in the right."""
    step = math.log(10000) / (channels // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Tokenizer:
    """Ranks of `tiktoken.model`, then the special tokens that `tokenizer_config.json` lists."""

    def __init__(self, directory: Path) -> None:
        lines = (directory / "tiktoken.model").read_bytes().splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
        added = read_json(directory / "tokenizer_config.json")["added_tokens_decoder"]
        self.special = {token["content"]: int(id_) for id_, token in added.items()}
        self._tiktoken = tiktoken.Encoding(
            "reference", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )

    def encode(self, text: str) -> list[int]:
        """Text that somebody typed: a special token's name in it is plain text."""
        return self._tiktoken.encode(text, disallowed_special=())

    def decode(self, ids: list[int]) -> str:
        return self._tiktoken.decode(ids)

    def __getitem__(self, name: str) -> int:
        return self.special[f"<|im_{name}|>"]

    def prompt(self, instruction: str, positions: int) -> list[int]:
        """One id per position; the stream that it does not belong to holds a blank, and audio is all blanks."""
        return [
            self["kimia_user_msg_start"],
            *self.encode(instruction),
            self["media_begin"],
            *[self["kimia_text_blank"]] * positions,
            self["media_end"],
            self["kimia_speech_ct_id"],
            self["msg_end"],
            self["kimia_assistant_msg_start"],
        ]


class Whisper:
    """The whole Whisper encoder over a window padded with silence."""

    def __init__(self, directory: Path) -> None:
        self.extractor = WhisperFeatureExtractor.from_pretrained(directory)
        config = whisper_config(directory)
        self.encoder = WhisperEncoder(config).eval()
        weights = read_tensors(directory, "model.encoder.")
        weights.setdefault("embed_positions.weight", sinusoids(config.max_source_positions, config.d_model))
        self.encoder.load_state_dict(weights)

    def mels(self, window: np.ndarray) -> np.ndarray:
        """[n_mels, frames of a full window]"""
        return self.extractor(window, sampling_rate=16000, return_tensors="np").input_features[0]

    def __call__(self, window: np.ndarray) -> Tensor:
        """[n] samples to [N, 4 * d_model]"""
        positions = math.ceil(len(window) / SAMPLES_PER_POSITION)
        frames = self.encoder(torch.from_numpy(self.mels(window))[None]).last_hidden_state[0]
        return frames[: positions * FRAMES_PER_POSITION].reshape(positions, -1)


class SpeechTokenizer:
    """GLM-4-Voice's tokenizer: a Whisper encoder, causal convolutions, block-causal attention; pooled, quantised."""

    def __init__(self, directory: Path) -> None:
        self.extractor = WhisperFeatureExtractor.from_pretrained(directory)
        raw = read_json(directory / "config.json")
        self.pooling: int = raw["pooling_kernel_size"]
        self.block: int = raw["quantize_causal_block_size"]
        assert raw["pooling_position"] == raw["quantize_position"], (
            "layers between pooling and quantising: no rule known"
        )
        config = whisper_config(directory)
        weights = read_tensors(directory, "model.encoder.")

        def module(prefix: str, empty: nn.Module) -> nn.Module:
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            empty.load_state_dict(own)
            return empty.eval()

        dim = config.d_model
        self.conv1 = module("conv1.", nn.Conv1d(config.num_mel_bins, dim, 3))
        self.conv2 = module("conv2.", nn.Conv1d(dim, dim, 3, stride=2))
        self.layers = [module(f"layers.{i}.", WhisperEncoderLayer(config)) for i in range(raw["pooling_position"])]
        self.embed_positions = weights["embed_positions.weight"]
        self.codebook = weights["codebook.weight"]

    def mels(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n_mels, 8N] and the mask [8N] of frames that begin in the recording."""
        features = self.extractor(
            window,
            sampling_rate=16000,
            padding="longest",
            pad_to_multiple_of=MELS_PER_FRAME * self.pooling * self.extractor.hop_length,
            return_attention_mask=True,
            return_tensors="np",
        )
        return features.input_features[0], features.attention_mask[0]

    def __call__(self, window: np.ndarray) -> Tensor:
        """[n] samples to [N] codes"""
        mels, mask = self.mels(window)
        x = torch.from_numpy(mels)[None]
        for convolution in (self.conv1, self.conv2):
            x = nn.functional.gelu(convolution(nn.functional.pad(x, (2, 0))))
        x = x.transpose(1, 2)
        x = x + self.embed_positions[: x.shape[1]]
        seen = torch.from_numpy(mask).bool()[::MELS_PER_FRAME]
        i = torch.arange(x.shape[1])
        visible = (i[None, :] <= i[:, None]) | (i[None, :] // self.block == i[:, None] // self.block)
        bias = torch.zeros(len(i), len(i)).masked_fill(~(visible & seen[None, :]), torch.finfo(torch.float32).min)
        for layer in self.layers:
            x = layer(x, bias[None, None])
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % self.pooling))
        pooled = nn.functional.avg_pool1d(x.transpose(1, 2), self.pooling)[0].T
        codes = self.nearest(pooled)
        return codes[seen[:: self.pooling]]

    def nearest(self, rows: Tensor) -> Tensor:
        distances = (rows**2).sum(1, keepdim=True) - 2 * rows @ self.codebook.T + (self.codebook**2).sum(1)
        return distances.argmin(1)


class Reference:
    """The model: `transcribe` is what the released code answers, greedily, in float32."""

    @torch.no_grad()
    def __init__(self, checkpoint: Path, speech_tokenizer: Path | None) -> None:
        """Without a speech tokenizer there are no speech tokens, and the blank takes their place."""
        config = read_json(checkpoint / "config.json")
        self.offset: int = config["kimia_token_offset"]
        self.tokenizer = Tokenizer(checkpoint)
        self.whisper = Whisper(checkpoint / "whisper-large-v3")
        self.speech = SpeechTokenizer(speech_tokenizer) if speech_tokenizer else None
        weights = read_tensors(checkpoint, "")
        qwen = Qwen2Config(
            **{key: config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
            **{key: config[key] for key in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")},
            rms_norm_eps=config["rms_norm_eps"],
            hidden_act="silu",
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="eager",
        )
        self.stack = Qwen2Model(qwen).eval()
        unused = ("mimo_layers.", "mimo_norm.", "vq_adaptor.")
        main = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        self.stack.load_state_dict({name: w for name, w in main.items() if not name.startswith(unused)})
        self.embedding = main["embed_tokens.weight"]
        self.head = weights["lm_head.weight"][: self.offset]
        self.adaptor = {name.removeprefix("vq_adaptor.layers."): w for name, w in main.items() if "vq_adaptor" in name}
        self.eps: float = config["rms_norm_eps"]

    def windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        size = self.whisper.extractor.n_samples
        return [waveform[start : start + size] for start in range(0, len(waveform), size)]

    def positions(self, samples: int) -> int:
        return sum(math.ceil(len(window) / SAMPLES_PER_POSITION) for window in self.windows(np.empty(samples)))

    @torch.no_grad()
    def codes(self, waveform: np.ndarray) -> list[int]:
        """Speech tokens of a recording, without the offset."""
        assert self.speech is not None
        return [int(code) for window in self.windows(waveform) for code in self.speech(window)]

    def adapt(self, x: Tensor) -> Tensor:
        w = self.adaptor
        x = nn.functional.silu(nn.functional.linear(x, w["0.weight"], w["0.bias"]))
        x = nn.functional.linear(x, w["3.weight"], w["3.bias"])
        return nn.functional.layer_norm(x, x.shape[-1:], w["4.weight"], w["4.bias"], self.eps)

    def audio_rows(self, waveform: np.ndarray) -> Tensor:
        """[n] samples to the decoder's input at the recording's positions, [N, hidden]."""
        blank = self.embedding[self.tokenizer["kimia_text_blank"]]
        heard = torch.cat([self.adapt(self.whisper(window)) for window in self.windows(waveform)])
        if self.speech is None:
            return (blank + heard) * math.sqrt(2)
        speech = self.embedding[torch.tensor(self.codes(waveform)) + self.offset]
        return (speech + heard) * math.sqrt(2) + blank

    @torch.no_grad()
    def transcribe(self, waveform: np.ndarray, instruction: str, max_tokens: int) -> Transcript:
        blank, end = self.tokenizer["kimia_text_blank"], self.tokenizer["kimia_text_eos"]
        audio = self.audio_rows(waveform)
        prompt = self.tokenizer.prompt(instruction, len(audio))
        rows = self.embedding[torch.tensor(prompt)] + self.embedding[blank]
        first = prompt.index(self.tokenizer["media_begin"]) + 1
        rows[first : first + len(audio)] = audio
        past = None  # keys and values of the rows before
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < max_tokens and end not in ids:
            output = self.stack(inputs_embeds=rows[None], past_key_values=past, use_cache=True)
            hidden, past = output.last_hidden_state[0, -1], output.past_key_values
            spoken = (self.head @ hidden).double().log_softmax(0)  # in float32 a sum over 150,000 ids is off by 3e-4
            ids.append(int(spoken.argmax()))
            logprobs.append(float(spoken[ids[-1]]))
            rows = (self.embedding[ids[-1]] + self.embedding[blank])[None]
        return Transcript(len(prompt), ids, logprobs)
