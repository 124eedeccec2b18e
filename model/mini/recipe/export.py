"""The trained parts as a checkpoint folder in the layout of Kimi-Audio's release, in shards that git copes with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.features import WHISPER_FOLDER

from .network import Sizes
from .vocabulary import Vocabulary

SPEECH_TOKENIZER_FOLDER: Final = "glm-4-voice-tokenizer"
SHARD_BYTES: Final = 4_800_000  # every file stays below 5 MB
CONTEXT: Final = 4096
LANGUAGES: Final = ["en"]
AUXILIARY: Final = ("ctc_",)  # heads that only training needs


def save_sharded(weights: dict[str, Tensor], folder: Path) -> None:
    """Write `model-0000N-of-0000M.safetensors` and their index; older shards in the folder go."""
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in weights.items():
        if size and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value.contiguous()
        size += value.nbytes
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for value in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def release_names(state: dict[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The decoder's weights in bfloat16 under the release's names; the head's rows for speech ids are zero."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(AUXILIARY):
            continue
        if name == "lm_head.weight":
            value = torch.cat((value, value.new_zeros(sizes.codes, sizes.hidden)))
        out[name if name.startswith("lm_head") else f"model.{name}"] = value.bfloat16()
    return out


def config(sizes: Sizes, vocabulary: Vocabulary) -> dict[str, Any]:
    """`config.json`: the release's keys, and the languages that this checkpoint knows."""
    special = vocabulary.special
    return {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "model_type": "kimi_audio",
        "bos_token_id": special["[BOS]"],
        "eos_token_ids": [special["[EOS]"], special["<|im_msg_end|>"]],
        "pad_token_id": vocabulary.size - 1,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "kimia_adaptor_input_dim": sizes.adaptor_input,
        "kimia_audio_output_vocab": sizes.codes,
        "kimia_media_begin": special["<|im_media_begin|>"],
        "kimia_media_end": special["<|im_media_end|>"],
        "kimia_mimo_audiodelaytokens": 5,
        "kimia_mimo_layers": 0,
        "kimia_mimo_transformer_from_layer_index": sizes.layers - 1,
        "kimia_text_output_vocab": vocabulary.size,
        "kimia_token_offset": vocabulary.size,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": sizes.heads,
        "num_audio_special_tokens": 0,
        "num_base_tokens": len(vocabulary.ranks),
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
        "supported_languages": LANGUAGES,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_whisper_feature": True,
        "vocab_size": vocabulary.size + sizes.codes,
    }


def export(root: Path, whisper: Path, speech_tokenizer: Path, out: Path, average: bool = True) -> None:
    """Write the checkpoint of the newest training state; with `average`, of its averaged weights."""
    state = torch.load(root / "state" / "latest.pt", weights_only=True, map_location="cpu")
    sizes = Sizes(**state["sizes"])
    vocabulary = Vocabulary.load(root / "tiktoken.model")
    out.mkdir(parents=True, exist_ok=True)
    save_sharded(release_names(state["ema" if average else "model"], sizes), out)
    _write_json(out / "config.json", config(sizes, vocabulary))
    generation = {"do_sample": False, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.size - 1}
    _write_json(out / "generation_config.json", generation)
    vocabulary.save(out)
    for source, name in ((whisper, WHISPER_FOLDER), (speech_tokenizer, SPEECH_TOKENIZER_FOLDER)):
        (out / name).mkdir(exist_ok=True)
        for file in ("config.json", "preprocessor_config.json"):
            shutil.copy(source / file, out / name / file)
        save_sharded(load_file(source / "model.safetensors"), out / name)
