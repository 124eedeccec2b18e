"""The Whisper encoder: from a CTranslate2 `model.bin` to Hugging Face names, and a fast exact-enough forward pass.

Serving always encodes a full 30 s window, however short the clip. For a clip of three seconds that is several times the
work, and the recipe encodes thousands of them. `WhisperEncoder.forward` therefore computes the clip's own frames and
keeps only every `thin`-th frame of the silent rest; as those frames are nearly alike, each stands for its neighbours by
a bias of log(thin) on its attention logits. `thin=1` is the exact computation.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

FLOAT16_TYPE: Final = 4  # the type number that CTranslate2 gives to float16 arrays
EXACT_TAIL: Final = 32  # silent frames next to the speech that are never thinned

_LAYER_NAMES: Final = {
    "self_attention/layer_norm/gamma": "self_attn_layer_norm.weight",
    "self_attention/layer_norm/beta": "self_attn_layer_norm.bias",
    "self_attention/linear_1/weight": "self_attn.out_proj.weight",
    "self_attention/linear_1/bias": "self_attn.out_proj.bias",
    "ffn/layer_norm/gamma": "final_layer_norm.weight",
    "ffn/layer_norm/beta": "final_layer_norm.bias",
    "ffn/linear_0/weight": "fc1.weight",
    "ffn/linear_0/bias": "fc1.bias",
    "ffn/linear_1/weight": "fc2.weight",
    "ffn/linear_1/bias": "fc2.bias",
}
_TOP_NAMES: Final = {
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    "position_encodings/encodings": "embed_positions.weight",
}


def _number(file: BinaryIO, code: str) -> int:
    size = struct.calcsize("<" + code)
    return int(struct.unpack("<" + code, file.read(size))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The float16 arrays of a CTranslate2 model (format version 6) by name."""
    arrays: dict[str, Tensor] = {}
    with path.open("rb") as file:
        if _number(file, "I") != 6:
            raise ValueError(f"{path} is not a CTranslate2 model of format version 6")
        _string(file)  # the kind of model
        _number(file, "I")  # its revision
        for _ in range(_number(file, "I")):
            name = _string(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            kind = _number(file, "B")
            data = file.read(_number(file, "I"))
            if kind == FLOAT16_TYPE:
                arrays[name] = torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).copy())
    return arrays


def hugging_face_names(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's arrays under Hugging Face's names (`model.encoder.*`), still float16."""
    out: dict[str, Tensor] = {}
    for name, value in arrays.items():
        scope, _, rest = name.partition("/")
        if scope != "encoder" or rest == "num_heads":
            continue
        if rest in _TOP_NAMES:
            out[_TOP_NAMES[rest]] = value
            continue
        layer, _, part = rest.partition("/")
        prefix = f"layers.{layer.removeprefix('layer_')}."
        if part in _LAYER_NAMES:
            out[prefix + _LAYER_NAMES[part]] = value
        elif part.startswith("self_attention/linear_0/"):
            kind = part.rpartition("/")[2]
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                if letter == "k" and kind == "bias":  # Whisper's keys have no bias: the fused one is zero
                    if third.any():
                        raise ValueError(f"{name}: the key bias is not zero")
                    continue
                out[f"{prefix}self_attn.{letter}_proj.{kind}"] = third
        else:
            raise ValueError(f"unknown array {name}")
    return {"model.encoder." + name: value.contiguous() for name, value in out.items()}


def whisper_config(weights: dict[str, Tensor]) -> dict[str, object]:
    """The `config.json` of the encoder, every size read off its weights."""
    d_model, mels, _ = weights["model.encoder.conv1.weight"].shape
    layers = 1 + max(int(n.split(".")[3]) for n in weights if ".layers." in n)
    ffn = weights["model.encoder.layers.0.fc1.weight"].shape[0]
    heads = d_model // 64
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": d_model,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": ffn,
        "num_mel_bins": mels,
        "max_source_positions": weights["model.encoder.embed_positions.weight"].shape[0],
        "vocab_size": 51864,
        "scale_embedding": False,
        "torch_dtype": "float16",
    }


def preprocessor_config(mels: int) -> dict[str, object]:
    """The `preprocessor_config.json` of both encoders."""
    return {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": mels,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }


class WhisperEncoder:
    """Whisper's encoder in float32, one clip at a time."""

    def __init__(self, folder: Path) -> None:
        """Load `config.json` and every `*.safetensors` of `folder`."""
        config = json.loads((folder / "config.json").read_text())
        weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        self.layers = int(config["encoder_layers"])
        self.heads = int(config["encoder_attention_heads"])
        self.w = {k.removeprefix("model.encoder."): v.float() for k, v in weights.items()}

    @torch.inference_mode()
    def forward(self, mel: Tensor, keep: int, thin: int = 1) -> Tensor:
        """mel [mels, 3000] of the padded window -> the first `keep` output frames [keep, d_model]."""
        w = self.w
        positions = w["embed_positions.weight"]
        exact = keep + EXACT_TAIL
        bias: Tensor | None = None
        if thin > 1 and exact + thin < len(positions):
            kept = torch.arange(exact + thin // 2, len(positions), thin)
            x = self._convolve(mel[:, : 2 * (exact + 4)])
            x = torch.cat((x[:exact], x[exact : exact + 1].expand(len(kept), -1)))  # silence: all frames are alike
            x = x + torch.cat((positions[:exact], positions[kept]))
            bias = torch.zeros(len(x))
            bias[exact:] = math.log(thin)
        else:
            x = self._convolve(mel) + positions
        for i in range(self.layers):
            x = self._layer(x, f"layers.{i}.", bias)
        width = x.shape[1]
        return F.layer_norm(x[:keep], (width,), w["layer_norm.weight"], w["layer_norm.bias"])

    def _convolve(self, mel: Tensor) -> Tensor:
        w = self.w
        x = F.gelu(F.conv1d(mel[None], w["conv1.weight"], w["conv1.bias"], padding=1))
        return F.gelu(F.conv1d(x, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1))[0].T

    def _layer(self, x: Tensor, p: str, bias: Tensor | None) -> Tensor:
        w = self.w
        frames, width = x.shape

        def heads(h: Tensor, name: str) -> Tensor:
            out = F.linear(h, w[f"{p}self_attn.{name}.weight"], w.get(f"{p}self_attn.{name}.bias"))
            return out.view(frames, self.heads, -1).transpose(0, 1)[None]

        h = F.layer_norm(x, (width,), w[p + "self_attn_layer_norm.weight"], w[p + "self_attn_layer_norm.bias"])
        mask = None if bias is None else bias.expand(frames, frames)[None, None]
        h = F.scaled_dot_product_attention(heads(h, "q_proj"), heads(h, "k_proj"), heads(h, "v_proj"), attn_mask=mask)
        h = h[0].transpose(0, 1).reshape(frames, width)
        x = x + F.linear(h, w[p + "self_attn.out_proj.weight"], w[p + "self_attn.out_proj.bias"])
        h = F.layer_norm(x, (width,), w[p + "final_layer_norm.weight"], w[p + "final_layer_norm.bias"])
        h = F.gelu(F.linear(h, w[p + "fc1.weight"], w[p + "fc1.bias"]))
        return x + F.linear(h, w[p + "fc2.weight"], w[p + "fc2.bias"])
