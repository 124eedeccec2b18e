"""A checkpoint that lacks something, or has it in another shape, stops the start with one sentence that names it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import checkpoint
from model.checkpoint import CheckpointError
from tests.model.checkpoints import TINY
from tests.model.conftest import Case
from tests.model.engines import Engine, EngineError

SHAPE = replace(TINY, main_files=1)
WHISPER = "whisper-large-v3"
SPEECH = "glm-4-voice-tokenizer"
Break = Callable[[Path], None]


def without_file(name: str) -> Break:
    def break_(directory: Path) -> None:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return break_


def with_text(name: str, text: str) -> Break:
    return lambda directory: (directory / name).write_text(text) and None


def with_config(name: str, **changes: Any) -> Break:
    """Keys changed, or left out where the value is None."""

    def break_(directory: Path) -> None:
        path = directory / name
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return break_


def with_tensors(folder: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def break_(directory: Path) -> None:
        path = directory / folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    return break_


def without_tensor(name: str, folder: str = "") -> Break:
    return with_tensors(folder, lambda tensors: tensors.pop(name))


def with_cut_tensor(name: str, folder: str = "") -> Break:
    return with_tensors(folder, lambda tensors: tensors.update({name: tensors[name][1:]}))


@dataclass(frozen=True)
class Broken:
    what: str
    break_: Break
    named: tuple[str, ...]
    """What the sentence has in it."""


ADAPTOR = "model.vq_adaptor.layers.3.weight"
LAYER = "model.layers.0.mlp.up_proj.weight"
ENCODER = "model.encoder.layers.0.fc1.bias"
CODEBOOK = "model.encoder.codebook.weight"

BROKEN = [
    Broken("no lm_head", without_tensor("lm_head.weight"), ("lm_head.weight",)),
    Broken("no embeddings", without_tensor("model.embed_tokens.weight"), ("model.embed_tokens.weight",)),
    Broken("no last norm", without_tensor("model.norm.weight"), ("model.norm.weight",)),
    Broken("no tensor of a layer", without_tensor(LAYER), (LAYER,)),
    Broken("no adaptor", without_tensor(ADAPTOR), (ADAPTOR,)),
    Broken("lm_head of another shape", with_cut_tensor("lm_head.weight"), ("lm_head.weight", "shape")),
    Broken("layer of another shape", with_cut_tensor(LAYER), (LAYER, "shape")),
    Broken("no tensor of whisper", without_tensor(ENCODER, WHISPER), (ENCODER, WHISPER)),
    Broken("whisper of another shape", with_cut_tensor(ENCODER, WHISPER), (ENCODER, WHISPER, "shape")),
    Broken(
        "whisper positions of another shape",
        with_cut_tensor("model.encoder.embed_positions.weight", WHISPER),
        ("embed_positions", WHISPER, "shape"),
    ),
    Broken("no tensor of the speech tokenizer", without_tensor(ENCODER, SPEECH), (ENCODER, SPEECH)),
    Broken("no codebook", without_tensor(CODEBOOK, SPEECH), (CODEBOOK, SPEECH)),
    Broken("codebook of another shape", with_cut_tensor(CODEBOOK, SPEECH), (CODEBOOK, SPEECH, "shape")),
    Broken("no speech tokenizer", without_file(SPEECH), ("speech tokenizer", SPEECH, "off")),
    Broken("no config of the speech tokenizer", without_file(f"{SPEECH}/config.json"), (f"{SPEECH}/config.json",)),
    Broken("no weights", without_file("model.safetensors"), ("safetensors",)),
    Broken("no whisper", without_file(WHISPER), (WHISPER,)),
    Broken("no weights of whisper", without_file(f"{WHISPER}/model.safetensors"), ("safetensors", WHISPER)),
    Broken("no front end", without_file(f"{WHISPER}/preprocessor_config.json"), ("preprocessor_config.json",)),
    Broken("cut-off weights", with_text("model.safetensors", "cut"), ("model.safetensors",)),
    Broken("no kimia_token_offset", with_config("config.json", kimia_token_offset=None), ("kimia_token_offset",)),
    Broken("an offset past the end", with_config("config.json", kimia_token_offset=10**6), ("kimia_token_offset",)),
    Broken(
        "another adaptor input", with_config("config.json", kimia_adaptor_input_dim=8), ("kimia_adaptor_input_dim",)
    ),
    Broken("broken config", with_text("config.json", '{"architectures": ['), ("config.json",)),
    Broken("broken config of whisper", with_text(f"{WHISPER}/config.json", "{"), (f"{WHISPER}/config.json", "JSON")),
    Broken("no ranks", without_file("tiktoken.model"), ("tiktoken.model",)),
    Broken("broken ranks", with_text("tiktoken.model", "one two three\n"), ("tiktoken.model",)),
    Broken("no special tokens", with_config("tokenizer_config.json", added_tokens_decoder=None), ("added_tokens",)),
]


@pytest.fixture(scope="module")
def whole(case: Callable[..., Case]) -> Path:
    return case(SHAPE).path


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.what)
def test_a_broken_checkpoint_stops_the_start(whole: Path, tmp_path: Path, broken: Broken) -> None:
    directory = shutil.copytree(whole, tmp_path / "checkpoint")
    broken.break_(directory)
    with pytest.raises(EngineError) as raised:
        Engine(directory, tmp_path / "log").close()
    sentence = raised.value.causes[0]
    assert all(name in sentence for name in broken.named), raised.value.causes
    assert "\n" not in sentence.strip()
    assert len(sentence) < 700


def test_the_whole_checkpoint_starts(whole: Path, tmp_path: Path, case: Callable[..., Case]) -> None:
    """What the tests above break works unbroken."""
    made = case(SHAPE)
    with Engine(whole, tmp_path / "log") as engine:
        made.check("smallest checkpoint", ["1.25 s"], engine.generate(made.request("1.25 s")))


def test_the_speech_tokenizer_is_looked_for_inside_then_beside(tmp_path: Path) -> None:
    main, inside, beside = tmp_path / "main", tmp_path / "main" / SPEECH, tmp_path / SPEECH
    inside.mkdir(parents=True)
    beside.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert checkpoint.speech_tokenizer_dir(main, None) == inside
    assert checkpoint.speech_tokenizer_dir(main, str(elsewhere)) == elsewhere
    assert checkpoint.speech_tokenizer_dir(main, "off") is None
    inside.rmdir()
    assert checkpoint.speech_tokenizer_dir(main, None) == beside
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint.speech_tokenizer_dir(main, str(tmp_path / "nowhere"))


def test_languages(whole: Path, tmp_path: Path) -> None:
    everything = ["zh", "en", "ja", "ko", "de", "fr", "es", "it", "pt", "ru", "ar"]
    assert list(checkpoint.supported_languages(whole)) == everything
    (tmp_path / "config.json").write_text(json.dumps({"supported_languages": ["en", "zh"]}))
    assert list(checkpoint.supported_languages(tmp_path)) == ["zh", "en"]
    (tmp_path / "config.json").write_text(json.dumps({"supported_languages": ["en", "xx"]}))
    with pytest.raises(CheckpointError, match="xx"):
        checkpoint.supported_languages(tmp_path)
