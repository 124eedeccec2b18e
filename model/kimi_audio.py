"""Kimi-Audio, speech to text, for vLLM: the two encoders, the adaptor and the decoder put together as the release does.

Of the model's two token streams, audio and text, at most one differs from the blank token B at any position. With E the
embedding table and x the other token, the decoder's input is E[x] + E[B]; at an audio position with speech code s it is
``(E[s] + adaptor(whisper)) * sqrt(2) + E[B]``.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from vllm.config import ModelConfig, SpeechToTextConfig, VllmConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.distributed import get_pp_group
from vllm.inputs import PromptType, TokensPrompt
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsMultiModal,
    SupportsPP,
    SupportsTranscription,
)
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    _merge_multimodal_embeddings,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors
from vllm.tokenizers import cached_tokenizer_from_config

from model import checkpoint
from model.configuration import KimiAudioConfig
from model.features import FRAMES_JOINED, WHISPER_FOLDER, FeatureExtractor
from model.processing import (
    KimiAudioDummyInputsBuilder,
    KimiAudioMultiModalProcessor,
    KimiAudioProcessingInfo,
    frames_per_window,
)
from model.projector import KimiAudioMultiModalProjector
from model.prompt import blank_id, instruction, transcription_prompt
from model.speech_tokenizer import SpeechTokenizer
from model.whisper import KimiAudioWhisperEncoder

# Windows that the encoders take at a time: bounds their memory, and is enough to keep a GPU busy.
WINDOWS_PER_BATCH = 8


@MULTIMODAL_REGISTRY.register_processor(
    KimiAudioMultiModalProcessor, info=KimiAudioProcessingInfo, dummy_inputs=KimiAudioDummyInputsBuilder
)
class KimiAudioForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsTranscription):  # type: ignore[misc]
    """The model class that vLLM runs for ``MoonshotKimiaForCausalLM``."""

    supported_languages: ClassVar[Mapping[str, str]] = checkpoint.LANGUAGES
    supports_transcription: ClassVar[Literal[True]] = True
    packed_modules_mapping: ClassVar[Mapping[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = (
        WeightsMapper(
            orig_to_new_prefix={
                "model.embed_tokens.": "language_model.embed_tokens.",
                "model.layers.": "language_model.layers.",
                "model.norm.": "language_model.norm.",
            }
        )
        | KimiAudioMultiModalProjector.hf_to_vllm_mapper
    )
    AUDIO_PLACEHOLDER: ClassVar[str] = "<|im_media_begin|><|im_kimia_text_blank|><|im_media_end|>"

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a recording in a chat template's text; None for other modalities."""
        del i
        return cls.AUDIO_PLACEHOLDER if modality == "audio" else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        config: KimiAudioConfig = model_config.hf_config
        self.config = config
        self.model_dir = checkpoint.resolve(model_config.model, model_config.revision)
        self.speech_dir = checkpoint.speech_tokenizer_dir(self.model_dir, config.speech_tokenizer)
        if vllm_config.load_config.load_format != "dummy":
            checkpoint.verify(self.model_dir, self.speech_dir)
        self.extractor: FeatureExtractor = checkpoint.feature_extractor(self.model_dir, self.speech_dir)
        self.blank = blank_id(cached_tokenizer_from_config(model_config))
        self.hidden_size: int = config.hidden_size

        self.audio_tower: KimiAudioWhisperEncoder | PPMissingLayer = PPMissingLayer()
        self.multi_modal_projector: KimiAudioMultiModalProjector | PPMissingLayer = PPMissingLayer()
        self.speech_tokenizer: SpeechTokenizer | PPMissingLayer = PPMissingLayer()
        self.encodes = get_pp_group().is_first_rank  # later pipeline stages get hidden states, never audio
        with self._mark_tower_model(vllm_config, "audio"):  # type: ignore[operator]
            if self.encodes:
                self.audio_tower = KimiAudioWhisperEncoder(
                    vllm_config=vllm_config, model_dir=self.model_dir, prefix=maybe_prefix(prefix, "audio_tower")
                )
                self.multi_modal_projector = KimiAudioMultiModalProjector(config)
                if self.speech_dir:
                    self.speech_tokenizer = SpeechTokenizer(checkpoint.speech_tokenizer_config(self.speech_dir))
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = Qwen2Model(
                vllm_config=vllm_config.with_hf_config(config.decoder_config(), architectures=["Qwen2ForCausalLM"]),
                prefix=maybe_prefix(prefix, "language_model"),
            )
        # A speech id has no text and must never be sampled: the head has rows for text ids alone.
        self.lm_head = (
            ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if get_pp_group().is_last_rank
            else PPMissingLayer()
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Decoder inputs of a step's recordings, a tensor [positions, hidden_size] each.

        Takes the fields of ``model.processing``: ``whisper_mels`` and ``speech_mels`` [frames, bins],
        ``window_samples`` [w] and ``windows`` [recordings], all recordings' joined.
        """
        samples, windows = kwargs.get("window_samples"), kwargs.get("windows")
        if not isinstance(samples, torch.Tensor) or not isinstance(windows, torch.Tensor):
            return []
        lengths: list[int] = samples.flatten().tolist()
        positions = [self.extractor.positions(length) for length in lengths]
        per_recording = [int(part.sum()) for part in torch.tensor(positions).split(windows.flatten().tolist())]
        if not self.encodes:  # asked by vLLM's memory profiling only
            return [torch.zeros(n, self.hidden_size) for n in per_recording]

        frames = frames_per_window(self.extractor, lengths)
        batches = [slice(i, i + WINDOWS_PER_BATCH) for i in range(0, len(lengths), WINDOWS_PER_BATCH)]
        whisper_mels = _joined(kwargs, "whisper_mels").split(frames["whisper_mels"])
        whisper = torch.cat([self._whisper_rows(whisper_mels[batch], positions[batch]) for batch in batches])
        rows = self.multi_modal_projector(whisper)
        root_two = torch.full((), 2, dtype=rows.dtype, device=rows.device).sqrt()
        if not self.speech_dir:
            _, blank = self._embed(torch.empty(0, dtype=torch.long, device=rows.device))
            return ((blank + rows) * root_two).split(per_recording)
        speech_mels = _joined(kwargs, "speech_mels").split(frames["speech_mels"])
        codes = torch.cat([self._codes(speech_mels[batch], lengths[batch], positions[batch]) for batch in batches])
        speech, blank = self._embed(codes + self.config.vocab_size)
        return ((speech + rows) * root_two + blank).split(per_recording)

    def _whisper_rows(self, mels: tuple[torch.Tensor, ...], positions: list[int]) -> torch.Tensor:
        """Trimmed windows [frames, bins] -> [sum of positions, 4 x d_model]."""
        total = self.extractor.window_samples // self.extractor.whisper.hop_length
        padded = torch.stack([torch.cat([mel, mel[-1:].expand(total - len(mel), -1)]) for mel in mels])
        encoded = self.audio_tower.encode(padded.transpose(1, 2).to(self.audio_tower.conv1.weight.dtype))
        joined = encoded.unflatten(1, (-1, FRAMES_JOINED)).flatten(2)
        return torch.cat([window[:count] for window, count in zip(joined, positions, strict=True)])

    def _codes(self, mels: tuple[torch.Tensor, ...], samples: list[int], positions: list[int]) -> torch.Tensor:
        """Windows [8 x positions, bins] -> codes [sum of positions]."""
        padded = nn.utils.rnn.pad_sequence(list(mels), batch_first=True).transpose(1, 2)
        speech = torch.tensor([-(-n // self.extractor.whisper.hop_length) for n in samples], device=padded.device)
        codes = self.speech_tokenizer(padded, speech)
        return torch.cat([window[:count] for window, count in zip(codes, positions, strict=True)])

    def _embed(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the embedding table for ``input_ids`` [n], and the blank token's: one look-up for all."""
        rows = self.language_model.embed_tokens(F.pad(input_ids, (0, 1), value=self.blank))
        return rows[:-1], rows[-1]

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decoder inputs [n, hidden_size] of ``input_ids`` [n], the recordings' from :meth:`embed_multimodal`."""
        tokens, blank = self._embed(input_ids)
        inputs = tokens + blank
        if multimodal_embeddings is None or is_multimodal is None or len(multimodal_embeddings) == 0:
            return inputs
        merged: torch.Tensor = _merge_multimodal_embeddings(inputs, multimodal_embeddings, is_multimodal)
        return merged

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states [n, hidden_size] of the last layer, or what the next pipeline stage takes."""
        del kwargs
        if intermediate_tensors is not None:
            inputs_embeds = None
        elif inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed_input_ids(input_ids)
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits [n, kimia_token_offset]: of text ids alone."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the decoder from ``weights`` (the checkpoint's top level), the encoders from their own folders."""
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(self._text_weights(weights), mapper=self.hf_to_vllm_mapper)
        if isinstance(self.audio_tower, KimiAudioWhisperEncoder):
            folder = self.model_dir / WHISPER_FOLDER
            names = self.audio_tower.load_weights(checkpoint.encoder_tensors(folder))
            loaded |= {f"audio_tower.{name}" for name in names}
        if isinstance(self.speech_tokenizer, SpeechTokenizer) and self.speech_dir:
            used = self.speech_tokenizer.state_dict()
            tensors = {name: t for name, t in checkpoint.encoder_tensors(self.speech_dir) if name in used}
            self.speech_tokenizer.load_state_dict(tensors)
            loaded |= {f"speech_tokenizer.{name}" for name in tensors}
        return loaded

    def _text_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        """Leave out what makes speech (``mimo``), and the head's rows for speech ids."""
        for name, tensor in weights:
            if self.is_unused_checkpoint_weight(name):
                continue
            if name.startswith("lm_head."):
                yield name, tensor[: self.config.vocab_size]
            else:
                yield name, tensor
                if name == "model.embed_tokens.weight" and self.config.tie_word_embeddings:
                    yield "lm_head.weight", tensor[: self.config.vocab_size]

    @staticmethod
    def is_unused_checkpoint_weight(name: str) -> bool:
        """Whether the tensor ``name`` serves speech output; vLLM does not read files that hold no others."""
        return name.removeprefix("model.").startswith("mimo_")

    @classmethod
    def get_speech_to_text_config(cls, model_config: ModelConfig, task_type: str) -> SpeechToTextConfig:
        """For vLLM's own transcription server: it cuts recordings into windows."""
        del task_type
        extractor = checkpoint.feature_extractor(checkpoint.resolve(model_config.model, model_config.revision), None)
        return SpeechToTextConfig(
            max_audio_clip_s=extractor.window_samples // extractor.sampling_rate, sample_rate=extractor.sampling_rate
        )

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> PromptType:
        """For vLLM's own transcription server: the prompt of one window."""
        text = instruction(
            stt_params.task_type, stt_params.language, stt_params.to_language, stt_params.request_prompt or None
        )
        tokenizer = cached_tokenizer_from_config(stt_params.model_config)
        return TokensPrompt(
            prompt_token_ids=transcription_prompt(tokenizer, text), multi_modal_data={"audio": stt_params.audio}
        )

    @classmethod
    def post_process_output(cls, text: str) -> str:
        """The words without white space around them."""
        return text.strip()


def _joined(kwargs: Mapping[str, object], key: str) -> torch.Tensor:
    mels = kwargs[key]
    if not isinstance(mels, torch.Tensor):
        raise TypeError(f"{key} is one tensor, the recordings' joined, not {type(mels).__name__}")
    return mels
