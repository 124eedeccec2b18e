"""Uvicorn with bounds: heads that never end, heads that are too large."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app import server


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    running = uvicorn.Server(
        uvicorn.Config(Starlette(routes=[Route("/", _hello)]), port=0, http=server.Protocol, log_config=None)
    )
    thread = Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running.servers[0].sockets[0].getsockname()
    running.should_exit = True
    thread.join()


def read_until_closed(connection: socket.socket) -> bytes:
    connection.settimeout(10)
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65_536):
            received += data
    return received


def refusal(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_does_not_end_is_closed(address: tuple[str, int], start: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(start)
        began = time.monotonic()
        assert read_until_closed(connection) == b""
        assert 0.5 < time.monotonic() - began < 5


def test_a_second_head_on_a_kept_connection_counts_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.settimeout(5)
        assert b"hello" in connection.recv(65_536)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert read_until_closed(connection) == b""


def test_a_body_may_come_later_than_a_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        time.sleep(1.5)
        connection.sendall(b"xGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_until_closed(connection).count(b"hello") == 2


@pytest.mark.parametrize("head", [b"X: " + b"a" * 2**20, b"X: a\r\n" * 2**18], ids=["one header", "many headers"])
def test_a_head_that_is_too_large_is_refused(address: tuple[str, int], head: bytes) -> None:
    with socket.create_connection(address) as connection, suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + head)
        assert refusal(read_until_closed(connection)) == "The head of the request is too large."
        return
    # The refusal was on its way when the connection was reset under the bytes still coming.


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01 TLS?\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_is_refused_in_the_one_shape(address: tuple[str, int], request_: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(request_)
        assert refusal(read_until_closed(connection)) == "Invalid HTTP request received."


async def test_silent_connections_do_not_keep_others_out(address: tuple[str, int]) -> None:
    silent = [await asyncio.open_connection(*address) for _ in range(50)]
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"hello" in await asyncio.wait_for(reader.read(), 5)
    for _, other in [*silent, (reader, writer)]:
        other.close()
