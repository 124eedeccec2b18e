"""Samples to padded batches: the prompt, the audio positions, the text, and which of them are dropped or disturbed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .dataset import Item
from .network import Batch
from .vocabulary import INSTRUCTION, Vocabulary

OTHER_INSTRUCTIONS = (
    "transcribe this recording",
    "Please write down what is said.",
    "what does the speaker say?",
    "Write the words of this audio.",
    "transcribe the speech to text in english",
    "请将音频内容转换为文字。",
)
OTHER_SHARE = 0.05
DROP_SPEECH = 0.15  # of samples: speech tokens off
DROP_WHISPER = 0.04  # of samples: Whisper's rows off, so that the speech tokens are learnt too
MASKED_SPAN = 4  # at most so many neighbouring positions lose Whisper's rows, in half of the samples
ROW_NOISE = 0.25  # standard deviation of what is added to Whisper's rows; theirs is about 1.2
WRONG_INPUT = 0.08  # of text inputs: another token, so that the decoder listens instead of guessing
CHUNK = 1500  # samples that are sorted by length together


class Batcher:
    """Makes batches of about `budget` positions."""

    def __init__(self, vocabulary: Vocabulary, budget: int) -> None:
        """Encode the prompts once."""
        self.vocabulary = vocabulary
        self.budget = budget
        self.default = vocabulary.prompt(INSTRUCTION)
        self.others = [vocabulary.prompt(text) for text in OTHER_INSTRUCTIONS]

    def plan(self, items: Sequence[Item], r: random.Random) -> list[list[int]]:
        """One pass over the items: indices of every batch, alike in length, batches in random order."""
        order = list(range(len(items)))
        r.shuffle(order)
        batches: list[list[int]] = []
        overhead = sum(map(len, self.default)) + 1
        for start in range(0, len(order), CHUNK):
            lengths = {
                i: (items[i].positions, items[i].positions + overhead + len(self.vocabulary.encode(items[i].text)))
                for i in order[start : start + CHUNK]
            }
            batch: list[int] = []
            longest = 0
            for i in sorted(lengths, key=lengths.__getitem__):
                if batch and max(longest, lengths[i][1]) * (len(batch) + 1) > self.budget:
                    batches.append(batch)
                    batch, longest = [], 0
                batch.append(i)
                longest = max(longest, lengths[i][1])
            batches.append(batch)
        r.shuffle(batches)
        return batches

    def batch(self, items: Sequence[Item], r: random.Random | None) -> Batch:
        """Put samples together; with a generator, drop and disturb as in training."""
        v = self.vocabulary
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        texts: list[list[int]] = []
        starts, audio_starts = [], []
        use_speech, use_whisper = [], []
        for item in items:
            before, after = self.default
            if r and r.random() < OTHER_SHARE:
                before, after = r.choice(self.others)
            text = v.encode(item.text)
            heard = text
            if r:
                heard = [r.randrange(256, len(v.ranks)) if r.random() < WRONG_INPUT else t for t in text]
            speech = [v.size + int(c) for c in item.codes]
            sequence = [*before, *speech, *after]
            ids.append([*sequence, *heard])
            labels.append([-100] * (len(sequence) - 1) + [*text, v.end])
            texts.append(text)
            starts.append(len(sequence) - 1)
            audio_starts.append(len(before))
            speech_on, whisper_on = np.ones(item.positions, np.float32), np.ones(item.positions, np.float32)
            if r:
                drop = r.random()
                if drop < DROP_SPEECH:
                    speech_on[:] = 0
                elif drop < DROP_SPEECH + DROP_WHISPER:
                    whisper_on[:] = 0
                elif r.random() < 0.5:
                    at = r.randrange(item.positions)
                    whisper_on[at : at + r.randint(1, MASKED_SPAN)] = 0
            use_speech.append(speech_on)
            use_whisper.append(whisper_on)
        rows = torch.from_numpy(np.concatenate([item.whisper for item in items]).astype(np.float32))
        if r:
            rows += ROW_NOISE * torch.randn(rows.shape)
        length, first = max(map(len, ids)), min(starts)
        flat = [
            row * length + start + i
            for row, (start, item) in enumerate(zip(audio_starts, items, strict=True))
            for i in range(item.positions)
        ]
        return Batch(
            ids=torch.tensor([x + [v.end] * (length - len(x)) for x in ids]),
            audio_at=torch.tensor(flat),
            rows=rows,
            use_speech=torch.from_numpy(np.concatenate(use_speech))[:, None],
            use_whisper=torch.from_numpy(np.concatenate(use_whisper))[:, None],
            answers_from=first,
            labels=torch.tensor([(x + [-100] * (length - len(x)))[first:] for x in labels]),
            audio_starts=torch.tensor(audio_starts),
            audio_lengths=torch.tensor([item.positions for item in items]),
            text=torch.tensor([t for text in texts for t in text], dtype=torch.long),
            text_lengths=torch.tensor([len(text) for text in texts]),
        )


def endless(items: Sequence[Item], batcher: Batcher, r: random.Random) -> Iterator[Batch]:
    """Pass after pass over the items."""
    while True:
        for indices in batcher.plan(items, r):
            yield batcher.batch([items[i] for i in indices], r)
