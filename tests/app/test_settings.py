"""Settings: what the environment may say, and what stops the start."""

import os
import subprocess
import sys

import pytest

from app.settings import PREFIX, Settings, SettingsError, load, markdown_table


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(variable)


def test_defaults_listen_on_the_loopback_and_serve_the_embedded_checkpoint() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "embedded")


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_PORT", "9001")
    monkeypatch.setenv("KIMI_MODEL", "/models/kimi")
    monkeypatch.setenv("KIMI_MAX_MODEL_LEN", "")
    settings = load()
    assert (settings.port, settings.model, settings.max_model_len) == (9001, "/models/kimi", None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KIMI_PORT", "65536"),
        ("KIMI_PORT", "http"),
        ("KIMI_MAX_UPLOAD_BYTES", "0"),
        ("KIMI_DECODE_TIMEOUT", "-1"),
        ("KIMI_GPU_MEMORY_UTILIZATION", "1.5"),
        ("KIMI_DTYPE", "int8"),
        ("KIMI_ENFORCE_EAGER", "perhaps"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load()
    message = str(caught.value)
    assert message.startswith(f"{variable}='{value}' cannot be used: ")
    assert message.endswith(".")
    assert "\n" not in message


def test_an_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_MODLE", "embedded")
    with pytest.raises(SettingsError, match=r"^KIMI_MODLE is not a setting; did you mean KIMI_MODEL\?$"):
        load()


def test_the_process_ends_with_status_2_and_one_line() -> None:
    environment = {**os.environ, "KIMI_PORT": "seven"}
    done = subprocess.run([sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("KIMI_PORT='seven' cannot be used")


def test_the_table_has_a_row_for_every_setting() -> None:
    rows = markdown_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [PREFIX + name.upper() for name in Settings.model_fields]
    assert all(row.count("|") == 5 for row in rows)
