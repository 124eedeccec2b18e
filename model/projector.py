"""The adaptor between Whisper and the decoder (``vq_adaptor`` in the checkpoint)."""

import torch
from torch import nn
from torch.nn import functional as F
from vllm.model_executor.models.utils import WeightsMapper

from model.configuration import KimiAudioConfig


class KimiAudioMultiModalProjector(nn.Module):
    """Four joined Whisper frames to one row of the decoder's width: linear, SiLU, linear, layer norm."""

    # The release's module is a Sequential; 1 and 2 are its activation and dropout.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.vq_adaptor.layers.0.": "multi_modal_projector.linear_in.",
            "model.vq_adaptor.layers.3.": "multi_modal_projector.linear_out.",
            "model.vq_adaptor.layers.4.": "multi_modal_projector.norm.",
        }
    )

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__()
        self.linear_in = nn.Linear(config.kimia_adaptor_input_dim, config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, joined_frames: torch.Tensor) -> torch.Tensor:
        """[n, kimia_adaptor_input_dim] -> [n, hidden_size]."""
        return self.norm(self.linear_out(F.silu(self.linear_in(joined_frames))))  # type: ignore[no-any-return]
