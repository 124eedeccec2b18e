"""vLLM's processor side: recordings to model inputs, and a prompt's one placeholder to as many as a recording takes."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import (
    AudioProcessorItems,
    ModalityDataItems,
    MultiModalDataItems,
    MultiModalDataParser,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from model import checkpoint
from model.features import FRAMES_PER_POSITION, FeatureExtractor
from model.prompt import INSTRUCTION, blank_id, transcription_prompt

AUDIO: Final = "audio"
# Ids of a transcription prompt besides instruction and audio, and the one position that an answer needs at least.
PROMPT_FRAME: Final = 7
MIN_ANSWER: Final = 1

Features = Mapping[str, Any]


class KimiAudioProcessingInfo(BaseProcessingInfo):  # type: ignore[misc]
    """What vLLM asks about the model before it has one."""

    @cached_property
    def feature_extractor(self) -> FeatureExtractor:
        """The checkpoint's front ends; raises CheckpointError where there are none."""
        model_config = self.ctx.model_config
        model_dir = checkpoint.resolve(model_config.model, model_config.revision)
        speech_dir = checkpoint.speech_tokenizer_dir(model_dir, model_config.hf_config.speech_tokenizer)
        return checkpoint.feature_extractor(model_dir, speech_dir)

    @property
    def max_positions(self) -> int:
        """Audio positions of the longest recording that a prompt can hold."""
        room = self.ctx.model_config.max_model_len - PROMPT_FRAME - MIN_ANSWER
        return self.feature_extractor.positions(self.feature_extractor.max_samples(max(room, 1)))

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """One recording a prompt; its windows travel together."""
        return {AUDIO: 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Sizes the encoder cache: as long as the context, however the prefill is cut into steps."""
        del seq_len, mm_counts
        return {AUDIO: self.max_positions}

    def get_data_parser(self) -> "KimiAudioMultiModalDataParser":
        """A parser that resamples raw audio to the checkpoint's rate."""
        return KimiAudioMultiModalDataParser(self.feature_extractor)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: the front end is the checkpoint's."""
        return {}


class KimiAudioDummyInputsBuilder(BaseDummyInputsBuilder[KimiAudioProcessingInfo]):  # type: ignore[misc]
    """The longest recording that a prompt can hold, for profiling."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Unused: a prompt is made of ids, see the processor's ``get_dummy_inputs``."""
        del mm_counts
        return INSTRUCTION

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Silence of the greatest length."""
        del seq_len, mm_options
        length = self.info.feature_extractor.max_samples(self.info.max_positions)
        return {AUDIO: [np.zeros(length, dtype=np.float32)] * mm_counts.get(AUDIO, 0)}


class RecordingItems(AudioProcessorItems):  # type: ignore[misc]
    """Recordings, each raw (one float array) or as ready features (a mapping, see ``FeatureExtractor``)."""


class KimiAudioMultiModalDataParser(MultiModalDataParser):  # type: ignore[misc]
    """Takes raw audio, ``(samples, rate)`` or samples, and ready features as ``FeatureExtractor`` gives them."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__(target_sr=extractor.sampling_rate, target_channels=1, audio_resample_method="soxr")
        self.extractor = extractor

    def _parse_audio_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if isinstance(data, Mapping):
            data = [data]
        if isinstance(data, list) and data and all(item is None or isinstance(item, Mapping) for item in data):
            return RecordingItems([item if item is None else self._checked(item) for item in data])
        items = super()._parse_audio_data(data)
        for samples in items.get_all() if isinstance(items, AudioProcessorItems) else ():
            if samples is not None and not len(samples):
                raise ValueError("the audio has no samples")
        return items

    def _checked(self, features: Features) -> dict[str, torch.Tensor]:
        """Tensors of ready features; raises ValueError where they do not fit together or the checkpoint."""
        front_ends = {"whisper_mels": self.extractor.whisper}
        if self.extractor.speech:
            front_ends["speech_mels"] = self.extractor.speech
        wanted = {*front_ends, "window_samples"}
        if set(features) != wanted:
            raise ValueError(f"ready features have the keys {sorted(wanted)}, not {sorted(features)}")
        tensors = {key: torch.as_tensor(value) for key, value in features.items()}
        windows = tensors["window_samples"].tolist()
        if not windows or not all(0 < samples <= self.extractor.window_samples for samples in windows):
            raise ValueError(
                f"'window_samples' {windows} are not lengths of windows, 1 to {self.extractor.window_samples}"
            )
        frames = frames_per_window(self.extractor, windows)
        for key, front_end in front_ends.items():
            shape = (sum(frames[key]), front_end.feature_size)
            if tuple(tensors[key].shape) != shape:
                raise ValueError(
                    f"'{key}' of windows of {windows} samples has shape {shape}, not {tuple(tensors[key].shape)}"
                )
        return tensors


def frames_per_window(extractor: FeatureExtractor, window_samples: Sequence[int]) -> dict[str, list[int]]:
    """Mel frames that each window has in ready features, by field."""
    return {
        "whisper_mels": [extractor.whisper.frames(samples, extractor.window_samples) for samples in window_samples],
        "speech_mels": [extractor.positions(samples) * FRAMES_PER_POSITION for samples in window_samples],
    }


class KimiAudioMultiModalProcessor(BaseMultiModalProcessor[KimiAudioProcessingInfo]):  # type: ignore[misc]
    """Features of raw recordings, fields of all, and the prompt's audio positions."""

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        """A transcription prompt with the longest recording."""
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        return ProcessorInputs(
            prompt=transcription_prompt(self.info.get_tokenizer(), ""),
            mm_data_items=self.info.parse_mm_data(data, validate=False),
        )

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        del hf_kwargs
        recordings: Sequence[Any] = hf_data.get(AUDIO, [])  # type: ignore[assignment]
        if not recordings:
            return BatchFeature()
        extractor = self.info.feature_extractor
        features = [
            item if isinstance(item, Mapping) else extractor(np.asarray(item, np.float32)) for item in recordings
        ]
        joined = {key: torch.cat([torch.as_tensor(item[key]) for item in features]) for key in features[0]}
        joined["windows"] = torch.tensor([len(item["window_samples"]) for item in features])
        return BatchFeature(joined)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        del hf_processor_mm_kwargs
        if "windows" not in hf_inputs:
            return {}
        windows: torch.Tensor = hf_inputs["windows"]
        frames = frames_per_window(self.info.feature_extractor, hf_inputs["window_samples"].tolist())
        fields = {
            "windows": MultiModalFieldConfig.batched(AUDIO, keep_on_cpu=True),
            "window_samples": MultiModalFieldConfig.flat_from_sizes(AUDIO, windows, keep_on_cpu=True),
        }
        for key in ("whisper_mels", "speech_mels"):
            if key in hf_inputs:
                sizes = [int(part.sum()) for part in torch.tensor(frames[key]).split(windows.tolist())]
                fields[key] = MultiModalFieldConfig.flat_from_sizes(AUDIO, torch.tensor(sizes))
        return fields

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        del hf_processor_mm_kwargs, out_mm_kwargs  # nothing is put out for what the multimodal cache already holds
        blank = blank_id(self.info.get_tokenizer())
        extractor = self.info.feature_extractor

        def audio_positions(index: int) -> list[int]:
            recording = mm_items[AUDIO][index]
            if isinstance(recording, Mapping):
                count = sum(map(extractor.positions, recording["window_samples"].tolist()))
            else:
                count = extractor.positions(len(recording))
            return [blank] * count

        return [PromptReplacement(modality=AUDIO, target=[blank], replacement=audio_positions)]
