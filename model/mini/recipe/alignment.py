"""Where in the audio each word piece is said: the best path through the CTC probabilities, used to guide attention.

A decoder needs long to find out that the next piece of text stands further on in the audio. The CTC layer knows much
earlier; its best path is therefore shown to one attention head for the first part of the training.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

IMPOSSIBLE: Final = -1e30


def best_path(log_probs: npt.NDArray[np.float32], text: npt.NDArray[np.int64], blank: int) -> npt.NDArray[np.int64]:
    """Middle frame of each text id on the best CTC path: log_probs [t, v], text [s] -> [s], -1 where none fits."""
    frames, pieces = len(log_probs), len(text)
    repeats = int((text[1:] == text[:-1]).sum())
    if not pieces or frames < pieces + repeats:
        return np.full(pieces, -1, np.int64)
    states = np.full(2 * pieces + 1, blank, np.int64)
    states[1::2] = text
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = text[1:] != text[:-1]
    emit = log_probs[:, states]
    score = np.full(len(states), IMPOSSIBLE, np.float32)
    score[:2] = emit[0, :2]
    steps = np.zeros((frames, len(states)), np.int64)
    for t in range(1, frames):
        one = np.concatenate(([IMPOSSIBLE], score[:-1])).astype(np.float32)
        two = np.concatenate(([IMPOSSIBLE, IMPOSSIBLE], score[:-2])).astype(np.float32)
        ways = np.stack((score, one, np.where(may_skip, two, np.float32(IMPOSSIBLE))))
        steps[t] = ways.argmax(0)
        score = ways.max(0) + emit[t]
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    spans: list[list[int]] = [[] for _ in range(pieces)]
    for t in range(frames - 1, -1, -1):
        if state % 2:
            spans[state // 2].append(t)
        state -= int(steps[t, state])
    return np.array([span[len(span) // 2] if span else -1 for span in spans], np.int64)
