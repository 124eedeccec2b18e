"""Small random checkpoints in the release's file layout, and recordings to try them on; all from seeds.

The weights are drawn so that a comparison means something: what is heard changes what is said, greedy text varies from
clip to clip and ends now and then, norms have gains other than one, and the adaptor's last norm sees a variance so
small that its epsilon shows.
"""

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

SPECIAL_TOKENS = [
    *("[BOS]", "[EOS]", "<|im_msg_end|>", "<|im_user_msg_start|>", "<|im_assistant_msg_start|>"),
    *(f"<|reserved_token_{i}|>" for i in range(4)),
    "[EOT]",
    *(f"<|reserved_token_{i}|>" for i in range(4, 12)),
    *("<|im_media_begin|>", "<|reserved_token_12|>", "<|im_media_end|>", "<|reserved_token_13|>"),
    *("<|reserved_token_14|>", "<|im_kimia_text_blank|>", "<|im_kimia_text_eos|>", "<|reserved_token_15|>"),
    *("<|reserved_token_16|>", "<|im_kimia_user_msg_start|>", "<|im_kimia_assistant_msg_start|>"),
    *(f"<|reserved_token_{i}|>" for i in range(17, 20)),
    *("<|im_kimia_speech_ct_id|>", "<|im_kimia_speech_ctd_id|>"),
]
TEXT_END = SPECIAL_TOKENS.index("<|im_kimia_text_eos|>")
WORDS = "Please transcribe the following audio 请将音频内容转换为文字 what is said here in english and some more words"


@dataclass(frozen=True)
class Shape:
    """Sizes and file layout of a checkpoint; the defaults follow the release wherever size costs nothing."""

    seed: int = 0
    text_pieces: int = 1003
    special_tokens: int = 40
    codes: int = 256
    hidden: int = 128
    layers: int = 3
    heads: int = 2
    kv_heads: int = 1
    norm_eps: float = 1e-6
    mel_bins: int = 128
    speech_mel_bins: int = 128
    window_seconds: int = 30
    whisper_dim: int = 128
    whisper_layers: int = 2
    speech_dim: int = 64
    speech_layers: int = 4
    pooling_position: int = 2
    block: int = 200
    main_files: int = 2
    folder_files: int = 1
    speech_output: bool = True
    position_table: bool = True
    ascii_text: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def offset(self) -> int:
        """Where speech ids begin: the text pieces and special tokens lie below."""
        return self.text_pieces + self.special_tokens

    @property
    def text_end(self) -> int:
        return self.text_pieces + TEXT_END

    @property
    def frames(self) -> int:
        """Encoder frames of a window, 50 a second."""
        return 50 * self.window_seconds


RELEASE_LIKE = Shape(seed=3)
OTHER_SIZES = Shape(
    seed=2,
    text_pieces=700,
    special_tokens=34,
    codes=96,
    hidden=192,
    layers=2,
    heads=6,
    kv_heads=2,
    norm_eps=3e-6,
    mel_bins=80,
    speech_mel_bins=64,
    window_seconds=10,
    whisper_dim=64,
    whisper_layers=3,
    speech_dim=128,
    speech_layers=3,
    pooling_position=3,
    block=26,
    main_files=1,
    folder_files=3,
    speech_output=False,
    position_table=False,
    dtype=torch.float32,
)
TINY = Shape(
    seed=5,
    hidden=64,
    layers=1,
    heads=1,
    whisper_dim=64,
    whisper_layers=1,
    speech_layers=2,
    pooling_position=1,
    codes=32,
)  # starts fast
ASCII = replace(TINY, hidden=128, layers=2, heads=2, ascii_text=True)  # whose text is the same however it is decoded


class Draw:
    """Random tensors in the roles that they have in a network."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * scale

    def linear(self, name: str, rows: int, columns: int, *, bias: bool = True, gain: float = 1.0) -> dict[str, Tensor]:
        weights = {f"{name}.weight": self.normal(rows, columns, scale=gain * columns**-0.5)}
        return weights | ({f"{name}.bias": self.normal(rows, scale=0.2 * gain)} if bias else {})

    def norm(self, name: str, size: int, *, bias: bool = True) -> dict[str, Tensor]:
        weights = {f"{name}.weight": 1 + self.normal(size, scale=0.2)}
        return weights | ({f"{name}.bias": self.normal(size, scale=0.2)} if bias else {})

    def contrast(self, size: int, inputs: int) -> Tensor:
        """A convolution of three frames that answers to differences between its inputs, not to their common level."""
        weight = self.normal(size, inputs, 3, scale=4 * (3 * inputs) ** -0.5)
        return weight - weight.mean(1, keepdim=True)

    def qwen2_layer(self, name: str, shape: Shape) -> dict[str, Tensor]:
        size, kv, inner = shape.hidden, shape.hidden // shape.heads * shape.kv_heads, 2 * shape.hidden
        return {
            **self.linear(f"{name}.self_attn.q_proj", size, size, gain=2),
            **self.linear(f"{name}.self_attn.k_proj", kv, size, gain=2),
            **self.linear(f"{name}.self_attn.v_proj", kv, size),
            **self.linear(f"{name}.self_attn.o_proj", size, size, bias=False),
            **self.linear(f"{name}.mlp.gate_proj", inner, size, bias=False),
            **self.linear(f"{name}.mlp.up_proj", inner, size, bias=False),
            **self.linear(f"{name}.mlp.down_proj", size, inner, bias=False, gain=2),
            **self.norm(f"{name}.input_layernorm", size, bias=False),
            **self.norm(f"{name}.post_attention_layernorm", size, bias=False),
        }

    def whisper_encoder(self, size: int, layers: int, mel_bins: int, frames: int) -> dict[str, Tensor]:
        """Tensors of Hugging Face's Whisper encoder, all but the last norm: the keys have no bias."""
        weights = {
            "conv1.weight": self.contrast(size, mel_bins),
            "conv1.bias": self.normal(size, scale=0.2),
            "conv2.weight": self.contrast(size, size),
            "conv2.bias": self.normal(size, scale=0.2),
            "embed_positions.weight": self.normal(frames, size, scale=0.3),
        }
        for i in range(layers):
            weights |= self.linear(f"layers.{i}.self_attn.q_proj", size, size, gain=2)
            weights |= self.linear(f"layers.{i}.self_attn.k_proj", size, size, bias=False, gain=2)
            weights |= self.linear(f"layers.{i}.self_attn.v_proj", size, size)
            weights |= self.linear(f"layers.{i}.self_attn.out_proj", size, size)
            weights |= self.linear(f"layers.{i}.fc1", 4 * size, size)
            weights |= self.linear(f"layers.{i}.fc2", size, 4 * size)
            weights |= self.norm(f"layers.{i}.self_attn_layer_norm", size)
            weights |= self.norm(f"layers.{i}.final_layer_norm", size)
        return weights


def write(directory: Path, shape: Shape) -> Path:
    """A checkpoint of this shape in `directory`: main model, Whisper, speech tokenizer."""
    draw = Draw(shape.seed)
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory, shape)
    _write_main(directory, shape, draw)
    _write_whisper(directory / "whisper-large-v3", shape, draw)
    _write_speech_tokenizer(directory / "glm-4-voice-tokenizer", shape, draw)
    return directory


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def _write_tensors(directory: Path, tensors: dict[str, Tensor], files: int) -> None:
    """One `model.safetensors`, or several with an index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if files == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    file_of = {name: f"model-{i % files + 1}-of-{files}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(file_of.values())):
        save_file(
            {name: tensors[name] for name in tensors if file_of[name] == file}, directory / file, {"format": "pt"}
        )
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": file_of})


def text_pieces(count: int) -> list[bytes]:
    """Single bytes, then the beginnings of a few words (each is the one before and a byte more), then fillers."""
    pieces = [bytes([i]) for i in range(256)]
    for word in WORDS.split():
        for spelling in (word, f" {word}"):
            encoded = spelling.encode()
            pieces += [encoded[:end] for end in range(2, len(encoded) + 1)]
    pieces = list(dict.fromkeys(pieces))[:count]
    return pieces + [b"\x01%d" % i for i in range(len(pieces), count)]


def _write_tokenizer(directory: Path, shape: Shape) -> None:
    pieces = text_pieces(shape.text_pieces)
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
    (directory / "tiktoken.model").write_text("".join(lines))
    reserved = [f"<|reserved_token_{i}|>" for i in range(20, 20 + shape.special_tokens - len(SPECIAL_TOKENS))]
    names = SPECIAL_TOKENS + reserved
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {str(shape.text_pieces + i): {"content": name} | flags for i, name in enumerate(names)}
    content = {"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": names[-1]}
    _write_json(directory / "tokenizer_config.json", content | {"tokenizer_class": "TikTokenTokenizer"})


def _write_main(directory: Path, shape: Shape, draw: Draw) -> None:
    size, vocabulary = shape.hidden, shape.offset + shape.codes
    config = {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "model_type": "kimi_audio",
        "auto_map": {"AutoConfig": "configuration_moonshot_kimia.KimiAudioConfig"},
        "bos_token_id": shape.text_pieces,
        "eos_token_ids": [shape.text_pieces + 1, shape.text_pieces + 2],
        "pad_token_id": shape.offset - 1,
        "hidden_act": "silu",
        "hidden_size": size,
        "initializer_range": 0.02,
        "intermediate_size": 2 * size,
        "kimia_adaptor_input_dim": 4 * shape.whisper_dim,
        "kimia_audio_output_vocab": shape.codes,
        "kimia_media_begin": shape.text_pieces + SPECIAL_TOKENS.index("<|im_media_begin|>"),
        "kimia_media_end": shape.text_pieces + SPECIAL_TOKENS.index("<|im_media_end|>"),
        "kimia_mimo_audiodelaytokens": 5,
        "kimia_mimo_layers": 1,
        "kimia_mimo_transformer_from_layer_index": shape.layers - 1,
        "kimia_text_output_vocab": shape.offset,
        "kimia_token_offset": shape.offset,
        "max_position_embeddings": 8192,
        "num_attention_heads": shape.heads,
        "num_audio_special_tokens": 512,
        "num_base_tokens": shape.text_pieces,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_whisper_feature": True,
        "vocab_size": vocabulary,
    }
    _write_json(directory / "config.json", config)
    # Remote code: it must never run.
    (directory / "configuration_moonshot_kimia.py").write_text("raise RuntimeError('remote code ran')\n")
    _write_json(directory / "generation_config.json", {})

    head = draw.normal(vocabulary, size, scale=3 * size**-0.5)
    head[shape.text_end] *= 2.5  # said now and then
    head[shape.offset :] *= 3  # would often win, were speech ids among the choices
    if shape.ascii_text:
        said = torch.zeros(vocabulary, dtype=torch.bool)
        said[33:127] = said[shape.text_end] = True
        head[~said] = 0
    tensors = {"model.embed_tokens.weight": draw.normal(vocabulary, size), "lm_head.weight": head}
    tensors |= draw.norm("model.norm", size, bias=False)
    tensors |= draw.linear("model.vq_adaptor.layers.0", size, 4 * shape.whisper_dim)
    tensors |= draw.linear("model.vq_adaptor.layers.3", size, size, gain=0.01)
    tensors |= draw.norm("model.vq_adaptor.layers.4", size)
    for i in range(shape.layers):
        tensors |= draw.qwen2_layer(f"model.layers.{i}", shape)
    if shape.speech_output:
        tensors |= draw.norm("model.mimo_norm", size, bias=False)
        tensors |= draw.qwen2_layer("model.mimo_layers.0", shape)
        tensors |= {"mimo_output.weight": draw.normal(vocabulary, size)}
    _write_tensors(directory, {name: tensor.to(shape.dtype) for name, tensor in tensors.items()}, shape.main_files)


def _encoder_config(architecture: str, size: int, layers: int, mel_bins: int, shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "whisper",
        "d_model": size,
        "encoder_layers": layers,
        "decoder_layers": 1,
        "encoder_attention_heads": size // 32,
        "decoder_attention_heads": size // 32,
        "encoder_ffn_dim": 4 * size,
        "decoder_ffn_dim": 4 * size,
        "num_mel_bins": mel_bins,
        "max_source_positions": shape.frames,
        "activation_function": "gelu",
        "vocab_size": 51866,
        "scale_embedding": False,
        "torch_dtype": "float32",
    }


def _write_preprocessor(directory: Path, mel_bins: int, shape: Shape) -> None:
    content = {
        "chunk_length": shape.window_seconds,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": mel_bins,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 16000 * shape.window_seconds,
        "nb_max_frames": 100 * shape.window_seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    _write_json(directory / "preprocessor_config.json", content)


def _write_whisper(directory: Path, shape: Shape, draw: Draw) -> None:
    directory.mkdir(exist_ok=True)
    size, layers = shape.whisper_dim, shape.whisper_layers
    config = _encoder_config("WhisperForConditionalGeneration", size, layers, shape.mel_bins, shape)
    _write_json(directory / "config.json", config)
    _write_preprocessor(directory, shape.mel_bins, shape)
    tensors = draw.whisper_encoder(size, layers, shape.mel_bins, shape.frames)
    tensors |= draw.norm("layer_norm", size)
    if not shape.position_table:
        del tensors["embed_positions.weight"]
    tensors = {f"model.encoder.{name}": tensor for name, tensor in tensors.items()}
    tensors |= draw.linear("model.decoder.layers.0.fc1", 4 * size, size)  # the release's file has a decoder: not used
    _write_tensors(directory, tensors, shape.folder_files)


def _write_speech_tokenizer(directory: Path, shape: Shape, draw: Draw) -> None:
    directory.mkdir(exist_ok=True)
    size, layers = shape.speech_dim, shape.speech_layers
    config = _encoder_config("WhisperVQForConditionalGeneration", size, layers, shape.speech_mel_bins, shape)
    config |= {
        "pooling_kernel_size": 4,
        "pooling_type": "avg",
        "pooling_position": shape.pooling_position,
        "quantize_vocab_size": shape.codes,
        "quantize_position": shape.pooling_position,
        "quantize_encoder_only": False,
        "quantize_causal_block_size": shape.block,
        "quantize_causal_encoder": False,
        "encoder_causal_attention": False,
        "encoder_causal_convolution": True,
        "quantize_ema_decay": 0.99,
        "quantize_restart_interval": 100,
    }
    _write_json(directory / "config.json", config)
    _write_preprocessor(directory, shape.speech_mel_bins, shape)
    tensors = draw.whisper_encoder(size, layers, shape.speech_mel_bins, shape.frames)
    tensors |= draw.norm("layer_norm", size)
    codebook = draw.normal(shape.codes, size)
    tensors |= {
        "codebook.weight": codebook - codebook.mean(1, keepdim=True),
        "embed_positions2.weight": draw.normal(shape.frames // 4, size),
        "ema_count": torch.ones(shape.codes),
        "ema_weight": torch.zeros(shape.codes, size),
    }
    tensors = {f"model.encoder.{name}": tensor for name, tensor in tensors.items()}
    _write_tensors(directory, tensors, shape.folder_files)


def recording(samples: int, seed: int) -> np.ndarray:
    """Something like speech, [samples] float32: gliding tones in syllables over a little noise."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    pitch = random.uniform(90, 260) * (1 + 0.2 * np.sin(2 * np.pi * random.uniform(0.2, 0.8) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    formants = random.uniform(0.05, 1, 24) * np.exp(-np.arange(24) / random.uniform(4, 12))
    voice = sum(gain * np.sin((harmonic + 1) * phase) for harmonic, gain in enumerate(formants))
    syllables = np.sin(2 * np.pi * random.uniform(1, 2.5) * time + random.uniform(0, 6)) ** 2
    noise = random.normal(0, 0.01, samples)
    return (0.1 * voice * syllables + noise).astype(np.float32)
