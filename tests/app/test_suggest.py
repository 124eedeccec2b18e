"""Suggestions: near names only, and at the cost of short ones however long the name is."""

import time

from app.suggest import nearest


def test_a_near_name_is_suggested() -> None:
    assert nearest("langauge", ["language", "prompt"]) == "; did you mean language?"


def test_a_far_one_is_not() -> None:
    assert nearest("colour", ["language", "prompt"]) == "."


def test_a_long_name_takes_no_time() -> None:
    started = time.monotonic()
    nearest("ab" * 10**6, ["ab" * 50])
    assert time.monotonic() - started < 1
