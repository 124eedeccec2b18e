"""Programs that are not Python packages: found, or the test is skipped; under CI=true it fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def program(*names: str) -> str:
    """The path of the first of `names` that there is, in this environment or on the PATH."""
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    for name in names:
        if path := shutil.which(name, path=search):
            return path
    reason = f"there is no {' or '.join(names)}; .ci/test-tools says which package has it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What `command` prints; fails the test with it when its exit status is not 0."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
