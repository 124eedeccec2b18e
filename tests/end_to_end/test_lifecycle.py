"""From starting to ended: what the service says on the way, and that nothing of it stays."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from deploy.serve import free_port
from tests.app.recordings import sound, tone
from tests.end_to_end.client import error, files, metric, minute_of_speech, until

GOOD = sound(tone(1))


@contextmanager
def process(log: Path, **settings: str) -> Iterator[tuple[psutil.Popen, str]]:
    """``python -m app``, not waited for, and its address; killed with all its processes if it is still there."""
    port = free_port()
    with log.open("wb") as sink:
        environment = {**os.environ, **settings, "KIMI_PORT": str(port)}
        running = psutil.Popen([sys.executable, "-m", "app"], env=environment, stdout=sink, stderr=sink)
        try:
            yield running, f"http://127.0.0.1:{port}"
        finally:
            if running.is_running():
                for child in running.children(recursive=True):
                    child.kill()
                running.kill()
            running.wait()


async def listening(address: str) -> None:
    """Wait until a connection is taken."""

    def taken() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", httpx.URL(address).port)) == 0

    await until(taken, 60)


def ready(address: str) -> bool:
    return httpx.get(f"{address}/health/ready").status_code == 200


async def ended(running: psutil.Popen, family: list[psutil.Process], seconds: float) -> int:
    """The exit status, once the process and its ``family`` are gone."""
    status = await asyncio.to_thread(running.wait, seconds)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    return int(status)


async def test_starting_serving_stopping(tmp_path: Path) -> None:
    with process(tmp_path / "log", KIMI_MAX_REQUESTS="2", KIMI_SHUTDOWN_TIMEOUT="120") as (running, address):
        await listening(address)
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            assert (await client.get("/health/live")).status_code == 200
            answer = await client.get("/health/ready")
            assert error(answer) == (503, "service_starting", None)
            assert int(answer.headers["retry-after"]) > 0
            assert error(await client.post("/transcribe", files=files(GOOD))) == (503, "service_starting", None)
        await until(lambda: ready(address), 600)

        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            data, fields = minute_of_speech(), {"temperature": "1", "max_tokens": "100"}
            long = [asyncio.create_task(client.post("/transcribe", files=files(data), data=fields)) for _ in range(2)]
            await until(lambda: metric(address, "kimi_requests_in_flight", route="/transcribe") == 2)
            refused = await client.post("/transcribe", files=files(GOOD))
            assert error(refused) == (429, "too_many_requests", None)
            assert refused.headers["retry-after"] == "1"

            await until(lambda: metric(address, "vllm:num_requests_running") == 2)
            family = running.children(recursive=True)
            running.send_signal(signal.SIGTERM)
            assert [answer.status_code for answer in await asyncio.gather(*long)] == [200, 200]
        assert await ended(running, family, 150) == 0
        assert "Traceback" not in (tmp_path / "log").read_text(errors="replace")


async def test_the_engine_dies(tmp_path: Path) -> None:
    with process(tmp_path / "log") as (running, address):
        await listening(address)
        await until(lambda: ready(address), 600)
        family = running.children(recursive=True)
        (core,) = [child for child in running.children() if "EngineCore" in child.name() + " ".join(child.cmdline())]
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            fields = {"temperature": "1", "max_tokens": "300"}
            under_way = asyncio.create_task(client.post("/transcribe", files=files(minute_of_speech()), data=fields))
            await until(lambda: metric(address, "vllm:num_requests_running") == 1)
            core.kill()
            assert error(await under_way) == (503, "engine_stopped", None)
            await until(lambda: not ready(address), 10)
            refused = await client.post("/transcribe", files=files(GOOD))
            assert error(refused) == (503, "service_dead", None)
            assert int(refused.headers["retry-after"]) > 0
            assert error(await client.get("/health/ready")) == (503, "service_dead", None)
            assert (await client.get("/health/live")).status_code == 200
        assert await ended(running, family, 60) == 1


async def test_stopping_while_starting(tmp_path: Path) -> None:
    with process(tmp_path / "log") as (running, address):
        await listening(address)
        await until(lambda: any("EngineCore" in child.name() for child in running.children(recursive=True)), 300)
        family = running.children(recursive=True)
        running.send_signal(signal.SIGTERM)
        assert await ended(running, family, 60) == 0


async def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with process(tmp_path / "log", KIMI_MODEL=str(tmp_path / "nothing")) as (running, address):
        await listening(address)
        reasons: list[str] = []

        def failed() -> bool:
            body = httpx.get(f"{address}/health/ready").json()["error"]
            reasons.append(body["message"])
            return bool(body["code"] == "service_failed")

        await until(failed, 60)
        assert f"{tmp_path}/nothing" in reasons[-1]
        assert await ended(running, running.children(recursive=True), 60) == 1
        log = (tmp_path / "log").read_text()
        assert reasons[-1] in log
        assert "Traceback" not in log


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, "KIMI_PORT": str(taken.getsockname()[1]), "KIMI_MODEL": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert "address already in use" in done.stderr
