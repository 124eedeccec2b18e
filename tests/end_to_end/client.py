"""How the tests talk to the service."""

import asyncio
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import soundfile
from prometheus_client.parser import text_string_to_metric_families

from tests.app.recordings import RATE, sound

ROOT = Path(__file__).parents[2]


@cache
def speech() -> npt.NDArray[np.float32]:
    """The demonstration recording, at 16 kHz."""
    samples, rate = soundfile.read(ROOT / "tests/data/demo.flac", dtype="float32")
    assert rate == RATE
    return np.asarray(samples, np.float32)


def minute_of_speech() -> bytes:
    """The demonstration recording over and over, as FLAC."""
    return sound(np.resize(speech(), 60 * RATE), kind="FLAC")


def files(data: bytes, name: str = "recording.wav") -> dict[str, tuple[str, bytes]]:
    """The multipart part of a recording."""
    return {"file": (name, data)}


async def transcribe(client: httpx.AsyncClient, data: bytes, **fields: str) -> dict[str, Any]:
    """The answer to a good request."""
    answer = await client.post("/transcribe", files=files(data), data=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of an error, after a look at its shape."""
    body = answer.json()
    assert set(body) == {"error"}, answer.text
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"].endswith(".") or "curl" in body["error"]["message"]
    assert answer.headers["x-request-id"]
    return answer.status_code, body["error"]["code"], body["error"]["param"]


def metric(address: str, name: str, **labels: str) -> float:
    """The sum of the samples called ``name`` that have ``labels``."""
    text = httpx.get(f"{address}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for ``condition``."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "this did not come true in time"
        await asyncio.sleep(0.05)
