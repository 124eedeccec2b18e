"""The configuration class behind ``model_type: "kimi_audio"``: Qwen2's, plus the release's ``kimia_*`` keys."""

import copy
from typing import Any, ClassVar

from transformers import Qwen2Config


class KimiAudioConfig(Qwen2Config):  # type: ignore[misc]
    """Sizes of the decoder, the adaptor and the two vocabularies, under the names of the release's ``config.json``.

    ``vocab_size`` in the file counts text and speech ids; only text ids can be said, so here ``vocab_size`` is what
    vLLM samples from (``kimia_token_offset``), and ``embedding_rows`` is what the file says.
    """

    model_type: ClassVar[str] = "kimi_audio"

    vocab_size: int = 168448
    kimia_token_offset: int | None = None  # first speech id: text ids lie below
    kimia_adaptor_input_dim: int = 5120
    embedding_rows: int | None = None
    speech_tokenizer: str | None = None  # "off", a path or a Hub id; None: see model.checkpoint.speech_tokenizer_dir
    supported_languages: list[str] | None = None  # ISO 639-1 codes, where a checkpoint narrows the release's set

    def __post_init__(self, **kwargs: Any) -> None:
        """Split the vocabulary; transformers calls this with the keys that are no fields of the class."""
        if self.embedding_rows is None:
            self.embedding_rows = self.vocab_size
            if self.kimia_token_offset is not None:
                self.vocab_size = self.kimia_token_offset
        super().__post_init__(**kwargs)

    def decoder_config(self) -> "KimiAudioConfig":
        """The same, with the whole embedding table as its vocabulary: what the decoder stack is built from."""
        config = copy.deepcopy(self)
        config.vocab_size = self.embedding_rows or self.vocab_size
        return config
