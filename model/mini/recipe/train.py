"""Training of the decoder: data-parallel single-thread ranks, a schedule by the clock, state that survives a kill.

The learning rate follows the share of the time that has passed, not the number of steps: other work on the same cores
may slow training down, but never leaves it at a high rate when the time is over. New shards join at the next pass.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from . import dataset
from .batches import Batcher
from .dataset import Item
from .decode import error_rate
from .network import Batch, Decoder, Sizes, losses
from .optimizer import Optimizer
from .vocabulary import Vocabulary

WARM_UP: Final = 40  # steps
FLOOR: Final = 0.02  # of the full rate, at the very end
CTC_WEIGHT: Final = (1.0, 0.15)  # at the start and from half time on
GUIDE: Final = (0.5, 0.7)  # weight of the guided head's loss at the start, share of the time at which it is down to 0
SHORT_FIRST: Final = ((0.30, 50), (0.45, 110))  # up to this share of the time: clips of at most so many positions
LONG: Final = 110  # positions from which a clip counts as long ...
LONG_SHARE: Final = 0.3  # ... and is taken in so many passes: a few of them would fill most of the batches
FRESH: Final = 4  # passes that a shard is taken whole in; after them it is nearly known by heart ...
WORN_SHARE: Final = 0.35  # ... and only this share of its samples is taken
EMA_DECAY: Final = 0.985
AGREE_EVERY: Final = 4  # steps between two looks at the clock, which all ranks must read alike
SAVE_EVERY: Final = 150.0  # seconds
TEST_ITEMS: Final = 48


@dataclass(frozen=True)
class Run:
    """One training run."""

    root: Path
    until: float  # Unix time at which the cosine ends
    budget: int = 1280  # padded positions of a rank's batch
    layers: int = 4
    intermediate: int = 768
    restart: bool = False  # keep weights and momenta, begin a new schedule
    max_steps: int = 10**9


def learning_rate(done: float, step: int) -> float:
    """Share of the full rate: a short warm-up, then a cosine over the time."""
    cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(1.0, (step + 1) / WARM_UP) * cosine


def ready(root: Path) -> list[str]:
    """The finished training shards."""
    return sorted(p.stem for p in (root / "codes").glob("[0-9]*.npy") if (root / "whisper" / p.name).exists())


class Trainer:
    """One rank."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        """Make the model, or take it up where the saved state left it."""
        self.run, self.rank, self.world = run, rank, world
        self.vocabulary = Vocabulary.load(run.root / "tiktoken.model")
        torch.manual_seed(0)
        self.model = Decoder(
            Sizes(self.vocabulary.size, layers=run.layers, intermediate=run.intermediate), self.vocabulary.blank
        )
        self.optimizer = Optimizer(self.model, world, rank)
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.began, self.step, self.positions = time.time(), 0, 0
        self.items: dict[str, list[Item]] = {}
        self.passes: dict[str, int] = {}
        self.state_file = run.root / "state" / "latest.pt"
        if self.state_file.exists():
            self._resume(torch.load(self.state_file, weights_only=True, map_location="cpu"))
        self.random = random.Random(self.step * world + rank)

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema = state["ema"]
        self.positions = state["positions"]
        self.passes = state["passes"]
        if not self.run.restart:
            self.began, self.step = state["began"], state["step"]

    def save(self) -> None:
        """Write everything that a continued run needs; the old state stays until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "began": self.began,
            "step": self.step,
            "positions": self.positions,
            "passes": self.passes,
            "sizes": asdict(self.model.sizes),
        }
        dataset.write_atomically(self.state_file, lambda part: torch.save(state, part))

    def _agree(self, value: Any) -> Any:
        """What rank 0 says."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def batches(self) -> Iterator[Batch]:
        """This rank's share of pass after pass; every rank gets as many batches as the others."""
        batcher = Batcher(self.vocabulary, self.run.budget)
        while True:
            names, seed, done = self._agree((ready(self.run.root), self.random.random(), self.done()))
            for name in names:
                if name not in self.items:
                    self.items[name] = dataset.load_items(self.run.root, name)
            limit = next((n for until, n in SHORT_FIRST if done < until), 10**6)
            r = random.Random(seed)
            items = []
            for name in names:
                share = 1.0 if self.passes.get(name, 0) < FRESH else WORN_SHARE
                self.passes[name] = self.passes.get(name, 0) + 1
                for item in self.items[name]:
                    if item.positions <= limit and r.random() < share * (1.0 if item.positions <= LONG else LONG_SHARE):
                        items.append(item)
            plan = batcher.plan(items, r)
            size = max(1, len(plan) // self.world)
            # Passes over short clips end early, so that the limit can grow.
            for indices in (plan * self.world)[self.rank :: self.world][: min(size, 120) if limit < 10**6 else size]:
                yield batcher.batch([items[i] for i in indices], self.random)

    def done(self) -> float:
        """Share of the time that has passed."""
        return (time.time() - self.began) / max(1.0, self.run.until - self.began)

    def train(self) -> None:
        """Step until the time is over."""
        saved = tested = reported = time.time()
        sums = [0.0] * 4
        done = self._agree(self.done())
        for batch in self.batches():
            if self.step % AGREE_EVERY == 0:
                done = self._agree(self.done())
            if done >= 1 or self.step >= self.run.max_steps:
                break
            guide = GUIDE[0] * max(0.0, 1 - done / GUIDE[1])
            text, ctc, guided = losses(self.model, batch, guide > 0)
            start, end = CTC_WEIGHT
            weight = start + (end - start) * min(1.0, 2 * done)
            (text + weight * ctc + guide * guided).backward()
            self.optimizer.average_gradients()
            self.optimizer.clip(2.0)
            self.optimizer.step(learning_rate(done, self.step))
            self.step += 1
            self.positions += batch.ids.numel() * self.world
            decay = min(EMA_DECAY, self.step / (self.step + 10))
            for name, value in self.model.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay)
            values = (text.item(), ctc.item(), guided.item(), 1)
            sums = [a + b for a, b in zip(sums, values, strict=True)]
            now = time.time()
            if self.rank == 0 and now - reported > 20:
                rate = learning_rate(done, self.step)
                print(
                    f"{time.strftime('%H:%M:%S')} step {self.step} {done:.1%} text {sums[0] / sums[3]:.3f} "
                    f"ctc {sums[1] / sums[3]:.3f} guide {sums[2] / sums[3]:.3f} "
                    f"rate {rate:.3f} positions {self.positions / 1e6:.2f}M "
                    f"shards {len(self.items)} step time {(now - reported) / sums[3]:.2f}",
                    flush=True,
                )
                reported, sums = now, [0.0] * 4
            if self.rank == 0 and now - saved > SAVE_EVERY:
                self.save()
                saved = now
            if self.rank == 0 and now - tested > 4 * SAVE_EVERY:
                self.test()
                tested = time.time()
        if self.rank == 0:
            self.save()
            self.test()

    def test(self) -> None:
        """Word error rates of the averaged weights on a few test items."""
        current = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        for name in ("seen", "held_out", "asterisk", "human"):
            if (self.run.root / "codes" / f"{name}.npy").exists():
                items = dataset.load_items(self.run.root, name)[:TEST_ITEMS]
                rate, examples = error_rate(self.model, self.vocabulary, items)
                print(f"  WER {name} {rate:.1%} | " + " | ".join(examples[:2]), flush=True)
        self.model.load_state_dict(current)


def run_rank(run: Run) -> None:
    """Train as the rank that the environment names (RANK, WORLD_SIZE), alone without one."""
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        rendezvous = run.root / "state"
        rendezvous.mkdir(parents=True, exist_ok=True)
        dist.init_process_group("gloo", rank=rank, world_size=world)
    Trainer(run, rank, world).train()
    if world > 1:
        dist.destroy_process_group()
