"""Whisper's encoder, as vLLM runs it (fused QKV, the platform's attention), loaded from the release's sub-folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from transformers import WhisperConfig
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.model_executor.models.whisper import WhisperEncoder

from model.features import WHISPER_FOLDER

POSITIONS = "embed_positions.weight"
KEY_WEIGHT = ".self_attn.k_proj.weight"


class KimiAudioWhisperEncoder(WhisperEncoder):  # type: ignore[misc]
    """The encoder of Whisper large v3 (or of whatever ``whisper-large-v3/config.json`` describes)."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."},
        orig_to_new_stacked={
            ".self_attn.q_proj": (".self_attn.qkv_proj", "q"),
            ".self_attn.k_proj": (".self_attn.qkv_proj", "k"),
            ".self_attn.v_proj": (".self_attn.qkv_proj", "v"),
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, model_dir: Path, prefix: str = "") -> None:
        whisper_config = WhisperConfig.from_pretrained(model_dir / WHISPER_FOLDER)
        encoder_config = vllm_config.with_hf_config(whisper_config, architectures=["WhisperForConditionalGeneration"])
        # A quantised decoder says nothing of this encoder, whose files hold plain weights.
        encoder_config.quant_config = None
        # Not split over pipeline stages: the first stage alone encodes.
        super().__init__(vllm_config=encoder_config, prefix=prefix, enable_pp=False)

    def encode(self, mels: torch.Tensor) -> torch.Tensor:
        """Padded windows [w, mel bins, frames] -> [w, frames / 2, d_model], all windows in one batch."""
        return self([mels])  # type: ignore[no-any-return]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors under Hugging Face's names (less ``model.encoder.``)."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(_with_key_bias(weights), mapper=self.hf_to_vllm_mapper)
        # Copies without the table: the base class has already put Whisper's sinusoids there.
        return loaded | {POSITIONS}


def _with_key_bias(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
    """Whisper's key projection has no bias, but the fused projection has room for one, which has to be zero."""
    for name, tensor in weights:
        yield name, tensor
        if name.endswith(KEY_WEIGHT):
            yield name.removesuffix("weight") + "bias", tensor.new_zeros(tensor.shape[0])
