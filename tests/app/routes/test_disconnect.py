"""Work ends when the client leaves, and not before."""

import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.routes.disconnect import unless_disconnected


def request(left: asyncio.Event) -> Request:
    """A request whose body has been read, and whose client leaves when ``left`` is set."""

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


async def test_the_result_of_work_that_is_waited_for() -> None:
    assert await unless_disconnected(request(asyncio.Event()), asyncio.sleep(0.01, "done")) == "done"


async def test_its_exception() -> None:
    async def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        await unless_disconnected(request(asyncio.Event()), fail())


async def test_leaving_cancels_and_waits_for_the_cleaning_up() -> None:
    left, steps = asyncio.Event(), []

    async def work() -> None:
        steps.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("cleaned up")

    asyncio.get_running_loop().call_later(0.05, left.set)
    with pytest.raises(ClientDisconnect):
        await unless_disconnected(request(left), work())
    assert steps == ["begun", "cleaned up"]


async def test_cancelling_from_outside_ends_the_work_too() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    outer = asyncio.create_task(unless_disconnected(request(asyncio.Event()), work()))
    await asyncio.sleep(0.05)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert cancelled.is_set()
