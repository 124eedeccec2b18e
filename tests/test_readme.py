"""The README says what is so: its examples are run, its tables compared with the code."""

import ast
import json
import re
from itertools import pairwise
from typing import Any

import pytest

from app.settings import markdown_table
from tests.conftest import ROOT, Service
from tests.programs import program, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (run))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [(command, language, shown) for (_, runs, command), (language, _, shown) in pairwise(BLOCKS) if runs]
ADDRESS = "http://127.0.0.1:8000"


def shape(value: Any) -> Any:
    """`value` with the types of its leaves in their place."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert all(ADDRESS in command for command, _, _ in EXAMPLES)


@pytest.mark.parametrize(("command", "language", "shown"), EXAMPLES, ids=lambda value: value.split("\n")[0])
def test_an_example_answers_as_shown(service: Service, command: str, language: str, shown: str) -> None:
    program("curl")
    printed = run("bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, service.address), cwd=ROOT)
    if language == "text":
        assert printed == shown
        return
    answered, promised = json.loads(printed), json.loads(shown)
    assert shape(answered) == shape(promised)
    for exact in ("text", "error", "status"):
        assert answered.get(exact) == promised.get(exact)


def test_the_settings_are_all_there() -> None:
    assert markdown_table() in README


def test_the_error_codes_are_all_there() -> None:
    raising = ("ApiError", "AudioError", "unavailable")
    codes = {
        argument.value
        for path in (ROOT / "app").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in raising
        for argument in call.args[:2]
        if isinstance(argument, ast.Constant) and re.fullmatch("[a-z_]+", str(argument.value))
    }
    assert codes
    errors = README.split("| status | `code` |")[1].split("\n\n")[0]
    assert codes - set(re.findall(r"`(\w+)`", errors)) == set()


def test_the_commands_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:^|`|\$ )make (\w+)", README, re.MULTILINE)
    assert set(named) <= set(targets)


def test_linked_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_the_first_example_shows_what_is_said() -> None:
    words = dict(line.split("\t") for line in (ROOT / "tests/data/transcripts.tsv").read_text().splitlines())
    assert json.loads(EXAMPLES[0][2])["text"] == words["demo.flac"]
    assert EXAMPLES[1][2] == words["demo.flac"] + "\n"
