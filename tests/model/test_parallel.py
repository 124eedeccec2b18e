"""Two ranks, pipeline or tensor parallel, say what one says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.checkpoints import RELEASE_LIKE
from tests.model.conftest import Case
from tests.model.engines import Engine

# vLLM's CPU worker makes a later stage's buffers in its warm-up, and warms up only what it compiles. The backend
# "eager" compiles nothing, but goes that way.
TRACED_ONCE = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}


@pytest.mark.parametrize(("option", "options"), [("pipeline_parallel_size", TRACED_ONCE), ("tensor_parallel_size", {})])
def test_two_ranks(case: Callable[..., Case], tmp_path: Path, option: str, options: dict[str, Any]) -> None:
    made = case(RELEASE_LIKE)
    with Engine(made.path, tmp_path / "log", enable_prefix_caching=True, **{option: 2}, **options) as engine:
        names = list(made.recordings)
        made.check(option, names, engine.generate(*map(made.request, names)))
        made.check(option, names[::-1], engine.generate(*map(made.request, names[::-1])))
