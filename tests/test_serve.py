"""`make demo` and `make run` when something goes wrong: they say what, and leave nothing running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

RECORDING = "tests/data/demo.flac"


def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "deploy/serve.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_recording_that_is_not_there() -> None:
    with start("no/such.wav") as process:
        printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed, error) == (1, "", "\nThere is no file no/such.wav.\n")


def test_a_service_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with start(RECORDING, KIMI_MODEL=str(tmp_path)) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "state=failed The model cannot be served" in error
    assert error.endswith("\nThe service ended with status 1 before it was ready.\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_the_demonstration_stops_the_service(number: signal.Signals, status: int) -> None:
    with start(RECORDING) as process:
        deadline = time.monotonic() + 60
        while not (family := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == status
    assert not [child for child in family if child.is_running()]
