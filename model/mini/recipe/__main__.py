"""Every stage as a command: `python -m model.mini.recipe STAGE`, in the order in which `--help` lists them.

Each stage skips what is already there, so that a stopped one is started again with the same command.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import encoder, evaluate, export, produce, speech_tokenizer, train
from .texts import load_texts
from .vocabulary import Vocabulary, train_ranks

MINI = Path(__file__).parent.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.mini.recipe", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("mini-data"), help="where everything that is made is kept")
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("whisper", help="convert Whisper tiny.en's CTranslate2 model.bin")
    stage.add_argument("model_bin", type=Path)
    stage = stages.add_parser("texts", help="write the texts and train the vocabulary")
    stage.add_argument("--count", type=int, default=60_000)
    stage.add_argument("--transcripts", type=Path, help="transcripts.tsv of evaluation recordings: never trained on")
    stage = stages.add_parser("shards", help="speech and Whisper's rows of a range of shards")
    stage.add_argument("first", type=int)
    stage.add_argument("last", type=int)
    stage.add_argument("--step", type=int, default=1, help="2 where two processes share the work")
    stages.add_parser("tests", help="the clean test sets")
    stage = stages.add_parser("speech-tokenizer", help="train the speech tokenizer and its codebook")
    stage.add_argument("--shards", type=int, default=8)
    stage.add_argument("--cpu-seconds", type=float, default=130)
    stages.add_parser("codes", help="speech codes of every shard that has none")
    stage = stages.add_parser("train", help="train the decoder; RANK and WORLD_SIZE make it one of several ranks")
    stage.add_argument("--until", required=True, help="local time at which the learning rate is down: 2026-01-31T18:30")
    stage.add_argument("--restart", action="store_true", help="begin a new schedule from the saved weights")
    stage = stages.add_parser("export", help="write the checkpoint folder")
    stage.add_argument("--out", type=Path, default=MINI)
    stage = stages.add_parser("evaluate", help="word error rates of a running service")
    stage.add_argument("--url", default="http://127.0.0.1:8000")
    stage.add_argument("--set", nargs="*", default=[], dest="names", help="seen held_out asterisk alsa human")
    stage.add_argument("--human", type=Path, default=Path("human"), help="folder of recordings and transcripts.tsv")
    stage.add_argument("--show", type=int, default=0, help="print so many errors of every set")
    stage.add_argument("--limit", type=int, help="take at most so many recordings of every set")
    return parser


def convert_whisper(model_bin: Path, folder: Path) -> None:
    """Write Whisper's encoder with Hugging Face's names and configuration files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = encoder.hugging_face_names(encoder.read_ctranslate2(model_bin))
    save_file(weights, folder / "model.safetensors")
    config = encoder.whisper_config(weights)
    mels = weights["model.encoder.conv1.weight"].shape[1]
    for name, content in (("config", config), ("preprocessor_config", encoder.preprocessor_config(mels))):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def make_vocabulary(root: Path) -> None:
    """Train the ranks on the texts, each alone and as it stands after another."""
    if not (root / "tiktoken.model").exists():
        written = [piece.written for piece in load_texts(root / "texts.jsonl")]
        Vocabulary(train_ranks([*written, *(f" {text}" for text in written)])).save(root)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage."""
    args = _parser().parse_args(arguments)
    root: Path = args.root
    whisper, tokenizer = root / "whisper-tiny", root / "speech-tokenizer"
    root.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.time()
    match args.stage:
        case "whisper":
            convert_whisper(args.model_bin, whisper)
        case "texts":
            produce.texts(root, args.count, args.transcripts)
            make_vocabulary(root)
        case "shards":
            produce.shards(root, whisper, range(args.first, args.last, args.step))
        case "tests":
            produce.clean_sets(root, whisper)
        case "speech-tokenizer":
            names = [p.stem for p in sorted((root / "whisper").glob("[0-9]*.npy"))[: args.shards]]
            vocabulary = Vocabulary.load(root / "tiktoken.model")
            speech_tokenizer.train(root, names, vocabulary, tokenizer, args.cpu_seconds)
        case "codes":
            produce.codes(root, tokenizer)
        case "train":
            until = datetime.fromisoformat(args.until).timestamp()
            train.run_rank(train.Run(root, until, restart=args.restart))
        case "export":
            export.export(root, whisper, tokenizer, args.out)
        case "evaluate":
            evaluate.main(args.url, args.names, root, args.human, args.show, args.limit)
    if args.stage != "evaluate":
        print(f"{args.stage}: {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
