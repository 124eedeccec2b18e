"""The files of a checkpoint: where they are, whether they are all there, and the tensors in them.

Everything here raises :class:`CheckpointError`, whose message is one sentence that names the file or tensor at fault.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from model.features import FRAMES_JOINED, WHISPER_FOLDER, FeatureExtractor
from model.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig

EMBEDDED: Final = "embedded"
EMBEDDED_DIR: Final = Path(__file__).parent / "mini"
SPEECH_TOKENIZER_FOLDER: Final = "glm-4-voice-tokenizer"
SPEECH_TOKENIZER_HUB_ID: Final = "THUDM/glm-4-voice-tokenizer"
SPEECH_TOKENS_OFF: Final = "off"
ENCODER_PREFIX: Final = "model.encoder."

# What the released model transcribes; a checkpoint's "supported_languages" may narrow it.
LANGUAGES: Final[Mapping[str, str]] = {
    "zh": "Chinese",
    "en": "English",
    "ja": "Japanese",
    "ko": "Korean",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "ru": "Russian",
    "ar": "Arabic",
}

# The parts of the published repositories that are used; the rest (detokenizer, vocoder, remote code) is 10 GB and more.
_HUB_PATTERNS: Final = [
    "*.json",
    "tiktoken.model",
    "model*.safetensors",
    f"{WHISPER_FOLDER}/*.json",
    f"{WHISPER_FOLDER}/*.safetensors",
    f"{SPEECH_TOKENIZER_FOLDER}/*",
]

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message names what is missing or wrong."""


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of ``model``: ``embedded``, a folder, or a Hub id (downloaded once, into Hugging Face's cache)."""
    if model == EMBEDDED:
        return EMBEDDED_DIR
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise CheckpointError(f"the checkpoint folder {model!r} does not exist")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model!r} is neither a folder nor a checkpoint that could be fetched from the Hub"
            f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error


def speech_tokenizer_dir(model_dir: Path, setting: str | None) -> Path | None:
    """The folder of the speech tokenizer; None only where ``setting`` is ``off``.

    ``setting`` is a folder or a Hub id; where it is None: the folder inside the checkpoint, the one beside it, the Hub.
    """
    if setting == SPEECH_TOKENS_OFF:
        return None
    if setting:
        return resolve(setting)
    for folder in (model_dir / SPEECH_TOKENIZER_FOLDER, model_dir.parent / SPEECH_TOKENIZER_FOLDER):
        if folder.is_dir():
            return folder
    try:
        return resolve(SPEECH_TOKENIZER_HUB_ID)
    except CheckpointError as error:
        raise CheckpointError(
            f"no speech tokenizer: there is no folder {SPEECH_TOKENIZER_FOLDER!r} in {model_dir} nor beside it, and"
            f" {error}; name one, or ask for {SPEECH_TOKENS_OFF!r} to do without"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"the checkpoint lacks {path}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def supported_languages(model_dir: Path) -> dict[str, str]:
    """ISO 639-1 code to English name, in the release's order, of the languages that this checkpoint transcribes."""
    path = model_dir / "config.json"
    narrowed = read_json(path).get("supported_languages") or list(LANGUAGES)
    unknown = sorted(set(narrowed) - set(LANGUAGES))
    if unknown:
        raise CheckpointError(f"{path}: 'supported_languages' has {unknown[0]!r}, which Kimi-Audio does not transcribe")
    return {code: name for code, name in LANGUAGES.items() if code in narrowed}


def feature_extractor(model_dir: Path, speech_dir: Path | None) -> FeatureExtractor:
    """The checkpoint's front ends."""
    try:
        return FeatureExtractor.from_checkpoint(model_dir, speech_dir)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error


def speech_tokenizer_config(speech_dir: Path) -> SpeechTokenizerConfig:
    """The speech tokenizer's configuration."""
    try:
        return SpeechTokenizerConfig.from_file(speech_dir / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name to the safetensors file in ``folder`` that holds it, by the index file where there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise CheckpointError(f"{index} has no 'weight_map'")
        return {name: folder / file for name, file in names.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"there are no safetensors files in {folder}")
    return {name: file for file in files for name in _open(file).keys()}  # noqa: SIM118 - no mapping


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def encoder_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name (less ``model.encoder.``) and tensor of the encoder in ``folder``, whose other halves are never read."""
    opened: dict[Path, Any] = {}
    for name, file in tensor_files(folder).items():
        if name.startswith(ENCODER_PREFIX):
            handle = opened.setdefault(file, None) or _open(file)
            opened[file] = handle
            yield name.removeprefix(ENCODER_PREFIX), handle.get_tensor(name)


def verify(model_dir: Path, speech_dir: Path | None) -> None:
    """Check that every tensor that is loaded is there and has its shape; reads file headers, no weights."""
    config_file = model_dir / "config.json"
    config = read_json(config_file)
    if not (model_dir / "tiktoken.model").is_file():
        raise CheckpointError(f"the checkpoint lacks {model_dir / 'tiktoken.model'}")
    read_json(model_dir / "tokenizer_config.json")
    extractor = feature_extractor(model_dir, speech_dir)
    whisper_dir = model_dir / WHISPER_FOLDER
    whisper_config = read_json(whisper_dir / "config.json")
    try:
        whisper = _whisper_shapes(whisper_config)
        decoder = _decoder_shapes(config)
        adaptor_width, whisper_width = config["kimia_adaptor_input_dim"], whisper_config["d_model"] * FRAMES_JOINED
        bins, frames = whisper_config["num_mel_bins"], whisper_config["max_source_positions"]
    except KeyError as error:
        raise CheckpointError(f"{config_file} or {whisper_dir / 'config.json'} has no {error}") from error
    if adaptor_width != whisper_width:
        raise CheckpointError(
            f"{config_file}: 'kimia_adaptor_input_dim' is {adaptor_width}, but {FRAMES_JOINED} Whisper frames"
            f" have {whisper_width}"
        )
    if bins != extractor.whisper.feature_size:
        raise CheckpointError(
            f"{whisper_dir}: config.json has {bins} mel bins, preprocessor_config.json another number"
        )
    if "quantization_config" not in config:  # quantised weights have names and shapes of their scheme's own
        _check_shapes(model_dir, decoder)
    positions = ENCODER_PREFIX + "embed_positions.weight"
    if positions in tensor_files(whisper_dir):  # some copies leave it out: it is Whisper's sinusoid table then
        whisper[positions] = (frames, whisper_config["d_model"])
    _check_shapes(whisper_dir, whisper)
    if speech_dir:
        speech_config = speech_tokenizer_config(speech_dir)
        with torch.device("meta"):
            states = SpeechTokenizer(speech_config).state_dict()
        _check_shapes(speech_dir, {ENCODER_PREFIX + name: tuple(tensor.shape) for name, tensor in states.items()})
        if config["kimia_token_offset"] + speech_config.quantize_vocab_size > config["vocab_size"]:
            raise CheckpointError(
                f"{config_file}: 'vocab_size' {config['vocab_size']} has no room for the"
                f" {speech_config.quantize_vocab_size} codes of {speech_dir} above"
                f" 'kimia_token_offset' {config['kimia_token_offset']}"
            )


def _check_shapes(folder: Path, expected: Mapping[str, Shape]) -> None:
    files = tensor_files(folder)
    handles: dict[Path, Any] = {}
    for name, shape in expected.items():
        if name not in files:
            raise CheckpointError(f"the checkpoint lacks the tensor {name!r} in {folder}")
        file = files[name]
        if file not in handles:
            handles[file] = _open(file)
        try:
            found = tuple(handles[file].get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(f"the checkpoint lacks the tensor {name!r}, which should be in {file}") from error
        if found != shape:
            raise CheckpointError(f"the tensor {name!r} in {file} has shape {list(found)} instead of {list(shape)}")


def _decoder_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    kv = hidden // heads * config["num_key_value_heads"]
    if not 0 < config["kimia_token_offset"] <= rows:
        raise CheckpointError(
            f"'kimia_token_offset' {config['kimia_token_offset']} lies outside the vocabulary of {rows}"
        )
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
        "model.vq_adaptor.layers.0.weight": (hidden, config["kimia_adaptor_input_dim"]),
        "model.vq_adaptor.layers.0.bias": (hidden,),
        "model.vq_adaptor.layers.3.weight": (hidden, hidden),
        "model.vq_adaptor.layers.3.bias": (hidden,),
        "model.vq_adaptor.layers.4.weight": (hidden,),
        "model.vq_adaptor.layers.4.bias": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (rows, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (width, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    return shapes


def _whisper_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, inner = config["d_model"], config["encoder_ffn_dim"]
    shapes: dict[str, Shape] = {
        "conv1.weight": (width, config["num_mel_bins"], 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
        "layer_norm.weight": (width,),
        "layer_norm.bias": (width,),
    }
    for layer in range(config["encoder_layers"]):
        prefix = f"layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{prefix}self_attn.{name}.weight"] = (width, width)
            if name != "k_proj":
                shapes[f"{prefix}self_attn.{name}.bias"] = (width,)
        shapes[f"{prefix}fc1.weight"], shapes[f"{prefix}fc1.bias"] = (inner, width), (inner,)
        shapes[f"{prefix}fc2.weight"], shapes[f"{prefix}fc2.bias"] = (width, inner), (width,)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{prefix}{name}.weight"] = shapes[f"{prefix}{name}.bias"] = (width,)
    return {ENCODER_PREFIX + name: shape for name, shape in shapes.items()}
