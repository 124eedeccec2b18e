"""What tests of several folders share: one running service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from deploy import serve

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Service:
    """A running service: where it answers, the id of its process, the file its log goes to."""

    address: str
    pid: int
    log: Path


@contextmanager
def running_service(log: Path, **settings: str) -> Iterator[Service]:
    """`python -m app` on a free port, ready. Of the caller's own `KIMI_` settings only KIMI_MODEL counts."""
    theirs = {name for name in os.environ if name.startswith("KIMI_")} - {"KIMI_MODEL"}
    port = serve.free_port()
    address = f"http://127.0.0.1:{port}"
    with mock.patch.dict(os.environ), log.open("wb") as sink:
        for name in theirs:
            del os.environ[name]
        with serve.service(sink, KIMI_PORT=str(port), **settings) as process:
            try:
                serve.wait_until_ready(process, address)
            except serve.ServiceError as error:
                pytest.fail(f"{error}\n{log.read_text(errors='replace')[-4000:]}")
            yield Service(address, process.pid, log)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with its default settings; one for the whole session, because starting takes a while."""
    with running_service(tmp_path_factory.mktemp("service") / "log") as running:
        yield running
