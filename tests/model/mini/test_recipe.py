"""The recipe end to end on a tiny scale: texts, speech, features, speech tokenizer, training, continuation, export.

Needs nothing but the project's environment: a made-up voice stands in for the synthesisers, and Whisper's encoder comes
out of the embedded checkpoint.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.mini.recipe import alignment, dataset, export, produce, samples, speech_tokenizer, texts, train
from model.mini.recipe.__main__ import make_vocabulary
from model.mini.recipe.network import Decoder, Sizes
from model.mini.recipe.vocabulary import Vocabulary

MINI = Path(train.__file__).parent.parent
WHISPER = MINI / "whisper-large-v3"


def hum(text: str, _manner: object, _seed: int = 0) -> np.ndarray:
    """A voice without a synthesiser: one tone a letter."""
    t = np.arange(800) / 16_000
    tones = [np.sin(2 * np.pi * (200 + 60 * (ord(c) % 32)) * t) for c in text[:24]]
    return (0.3 * np.concatenate(tones)).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: two shards of six samples, a few steps."""
    root = tmp_path_factory.mktemp("mini")
    patch = pytest.MonkeyPatch()
    patch.setattr(samples, "speak", hum)
    patch.setattr(samples, "KINDS", {"single": 1.0})
    pieces = texts.make_texts(150, 1, ["please hold the line"], {"grammar": 90})
    texts.save_texts(pieces, root / "texts.jsonl")
    make_vocabulary(root)
    produce.shards(root, WHISPER, range(2), size=6)
    produce.clean_sets(root, WHISPER, scale=0.01)
    vocabulary = Vocabulary.load(root / "tiktoken.model")
    speech_tokenizer.train(root, ["0000"], vocabulary, root / "speech-tokenizer", cpu_seconds=1.5)
    produce.codes(root, root / "speech-tokenizer")
    train.run_rank(run(root, max_steps=4))
    patch.undo()
    return root


def run(root: Path, max_steps: int, restart: bool = False) -> train.Run:
    return train.Run(
        root, time.time() + 600, budget=400, layers=3, intermediate=64, restart=restart, max_steps=max_steps
    )


def test_a_stopped_run_goes_on_where_it_was(root: Path) -> None:
    train.run_rank(run(root, max_steps=6))
    state = torch.load(root / "state" / "latest.pt", weights_only=True)
    assert state["step"] == 6
    assert state["positions"] > 0


def test_finished_shards_are_not_made_again(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("000*.np*")}
    produce.shards(root, WHISPER, range(2), size=6)
    produce.codes(root, root / "speech-tokenizer")
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("000*.np*")}


def test_items_line_up(root: Path) -> None:
    items = dataset.load_items(root, "0000")
    assert len(items) == 6
    for item in items:
        assert item.whisper.shape == (len(item.codes), 4 * 384)


def test_export_has_the_releases_layout(root: Path, tmp_path: Path) -> None:
    export.export(root, root_whisper(tmp_path), root / "speech-tokenizer", tmp_path / "out")
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert config["vocab_size"] == config["kimia_token_offset"] + 512
    assert max(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 5_000_000
    weights: dict[str, torch.Tensor] = {}
    for file in set(index.values()):
        weights |= load_file(out / file)
    assert set(weights) == set(index)
    assert weights["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert not any("ctc" in name for name in weights)
    for folder in ("whisper-large-v3", "glm-4-voice-tokenizer"):
        assert (out / folder / "model.safetensors.index.json").exists()


def root_whisper(tmp_path: Path) -> Path:
    """The embedded encoder as the one file that the converter writes."""
    folder = tmp_path / "whisper"
    folder.mkdir()
    weights: dict[str, torch.Tensor] = {}
    for file in WHISPER.glob("*.safetensors"):
        weights |= load_file(file)
    export.save_file(weights, folder / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((WHISPER / name).read_bytes())
    return folder


def test_codes_are_what_the_stored_tokenizer_gives(root: Path) -> None:
    model = speech_tokenizer.load(root / "speech-tokenizer")
    shard = dataset.load_shard(root / "audio" / "0000.npz")
    codes = np.load(root / "codes" / "0000.npy")
    mels = dataset.speech_mels(shard.waveforms()[0])
    again = model(mels[None], torch.tensor([mels.shape[1]]))[0].numpy()
    np.testing.assert_array_equal(again, codes[: len(again)])


def test_no_text_holds_an_evaluation_sentence() -> None:
    said = texts.make_texts(400, 3, [], {"grammar": 1})
    sentence = next(p.written for p in said if len(p.written.split()) >= 4)
    kept = texts.make_texts(400, 3, [sentence], {"grammar": 1})
    assert not any(sentence in p.written for p in kept)


def test_thinning_the_silence_changes_little() -> None:
    audio = np.concatenate([hum("abcdefgh" * 3, None), np.zeros(4000, np.float32)])
    exact, thin = (dataset.whisper_rows(WHISPER, audio, n).astype(np.float32) for n in (1, 8))
    assert np.linalg.norm(exact - thin) < 0.35 * np.linalg.norm(exact)


def test_the_decoder_is_transformers_qwen2() -> None:
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    sizes = Sizes(text_vocab=100, codes=10, hidden=64, layers=3, heads=4, kv_heads=2, intermediate=96, adaptor_input=32)
    model = Decoder(sizes, blank=99)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    config = Qwen2Config(
        vocab_size=1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
    )
    reference = Qwen2Model(config).eval()
    state = {k: v for k, v in model.state_dict().items() if k.startswith("layers.") or k == "norm.weight"}
    reference.load_state_dict(state, strict=False)
    h = torch.randn(2, 11, 64)
    with torch.no_grad():
        wanted = reference(inputs_embeds=h).last_hidden_state
        cos, sin = model.rotary(torch.arange(11))
        got, stepped, caches = h, [], [None] * 3
        for i, layer in enumerate(model.layers):
            got = layer(got, cos, sin, 4 if i == 2 else 0)
        for at in range(11):
            one = h[:, at : at + 1]
            for i, layer in enumerate(model.layers):
                one, caches[i] = layer.step(one, cos[at : at + 1], sin[at : at + 1], caches[i])
            stepped.append(one)
        torch.testing.assert_close(model.norm(got), wanted[:, 4:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.norm(torch.cat(stepped, 1)), wanted, atol=1e-4, rtol=1e-4)


def test_the_best_path_follows_the_peaks() -> None:
    log_probs = np.log(np.full((9, 4), 0.05, np.float32))
    for frame, symbol in enumerate([3, 1, 1, 3, 1, 2, 2, 2, 3]):  # 3 is the blank
        log_probs[frame, symbol] = np.log(0.85)
    path = alignment.best_path(log_probs, np.array([1, 1, 2]), blank=3)
    assert path.tolist() == [1, 4, 6]
    assert alignment.best_path(log_probs[:2], np.array([1, 1]), blank=3).tolist() == [-1, -1]


def test_samples_come_back_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "speak", hum)
    pieces = texts.make_texts(30, 2, [], {"grammar": 1})
    one, two = (samples.training_sample(pieces, 5, 1) for _ in range(2))
    assert one.text == two.text
    np.testing.assert_array_equal(one.audio, two.audio)


@pytest.mark.parametrize(
    ("printed", "written"),
    [
        ("Mr. Smith isn't here!", "mister smith isn't here"),
        ("He was born in 1920.", None),
        ("The C.I.A. knows", None),
        ("a well-known 'fact'", "a well known fact"),
    ],
)
def test_printed_text_becomes_words(printed: str, written: str | None) -> None:
    piece = texts.plain(printed, "test")
    assert (piece.written if piece else None) == written


def test_numbers_are_words() -> None:
    from model.mini.recipe import numbers
    from model.mini.recipe.evaluate import words

    assert numbers.cardinal(1_234_005) == "one million two hundred thirty four thousand five"
    assert numbers.ordinal(32) == "thirty second"
    assert numbers.year(1905) == "nineteen oh five"
    assert words("Dial 600, or 8500!") == "dial six hundred or eight five zero zero"
    r = random.Random(0)
    for fill in numbers.FILLERS.values():
        assert not set(texts.normalise(fill(r)[1])) - set("abcdefghijklmnopqrstuvwxyz' ")
