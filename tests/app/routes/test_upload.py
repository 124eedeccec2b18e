"""Reading a form under bounds: its size, its speed, its parts, its end."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app import errors
from app.middleware import RequestContext
from app.routes.upload import read_upload
from app.settings import Settings

LIMIT = 100_000
SETTINGS = Settings(max_upload_bytes=LIMIT, upload_grace=1.0, min_upload_rate=10_000)
BOUNDARY = "frontier"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part("file", b"sound", "a.wav")


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()

    @app.post("/")
    async def read(request: Request) -> dict[str, Any]:
        async with read_upload(request, SETTINGS) as upload:
            link = os.readlink(f"/proc/self/fd/{upload.file.fileno()}")  # noqa: PTH115
            return {"fields": upload.fields, "file": upload.file.read().decode(), "size": upload.size, "link": link}

    errors.install(app)
    app.state.paths = {"/": {"POST"}}
    app.add_middleware(RequestContext, routes=app.routes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def post(client: httpx.AsyncClient, body: bytes | AsyncIterator[bytes], kind: str = TYPE) -> httpx.Response:
    return await client.post("/", content=body, headers={"Content-Type": kind})


async def test_fields_in_order_and_a_file_in_no_folder(client: httpx.AsyncClient) -> None:
    body = part("b", "é".encode()) + FILE + part("a", b"1") + part("b", b"2") + END
    answer = (await post(client, body)).json()
    assert answer["fields"] == [["b", "é"], ["a", "1"], ["b", "2"]]
    assert (answer["file"], answer["size"]) == ("sound", len(body))
    assert answer["link"].endswith("(deleted)")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b", "", "x" * 3000, "ｓ.wav", "a.wav;rm -rf"])
async def test_a_files_name_is_of_no_consequence(client: httpx.AsyncClient, name: str) -> None:
    assert (await post(client, part("file", b"sound", name) + END)).json()["file"] == "sound"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "param"),
    [
        (FILE + END, "application/json", 415, "unsupported_media_type", None),
        (b"file=sound", "application/x-www-form-urlencoded", 415, "unsupported_media_type", None),
        (b"RIFF", "audio/wav", 415, "unsupported_media_type", None),
        (FILE + END, "multipart/form-data", 400, "malformed_multipart", None),
        (FILE + END, "multipart/form-data; boundary=other", 400, "malformed_multipart", None),
        (b"", TYPE, 400, "malformed_multipart", None),
        (b"nonsense", TYPE, 400, "malformed_multipart", None),
        (FILE, TYPE, 400, "malformed_multipart", None),
        (FILE + part("language", b"en")[:-8], TYPE, 400, "malformed_multipart", None),
        (FILE + f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END, TYPE, 400, "malformed_multipart", None),
        (FILE + part("prompt", b"\xff\xfe") + END, TYPE, 400, "malformed_multipart", None),
        (FILE + part("prompt", b"x" * 70_000) + END, TYPE, 400, "malformed_multipart", None),
        (FILE + part("x", b"") * 65 + END, TYPE, 400, "malformed_multipart", None),
        (part("language", b"en") + END, TYPE, 400, "missing_file", "file"),
        (END, TYPE, 400, "missing_file", "file"),
        (FILE + FILE + END, TYPE, 400, "several_files", "file"),
        (FILE * 9 + END, TYPE, 400, "malformed_multipart", None),
        (part("file", b"sound") + END, TYPE, 400, "file_is_text", "file"),
        (FILE + part("language", b"en", "l.txt") + END, TYPE, 400, "unexpected_file", "language"),
    ],
)
async def test_bad_forms(
    client: httpx.AsyncClient, body: bytes, kind: str, status: int, code: str, param: str | None
) -> None:
    answer = await post(client, body, kind)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


@pytest.mark.parametrize("charset", ["utf-16", "idna", "hex", "no-such"])
async def test_text_is_utf_8_whatever_is_claimed(client: httpx.AsyncClient, charset: str) -> None:
    answer = await post(client, part("prompt", "中文".encode()) + FILE + END, f"{TYPE}; charset={charset}")
    assert answer.json()["fields"] == [["prompt", "中文"]]


async def test_a_body_up_to_the_limit_and_one_byte_over(client: httpx.AsyncClient) -> None:
    room = LIMIT - len(part("file", b"", "a.wav") + END)
    assert (await post(client, part("file", b"s" * room, "a.wav") + END)).status_code == 200
    answer = await post(client, part("file", b"s" * (room + 1), "a.wav") + END)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_the_limit_holds_while_a_body_of_unknown_length_comes(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("file", b"", "a.wav")[:-2]
        while sent < 100 * LIMIT:
            sent += 1000
            yield b"s" * 1000

    answer = await post(client, endless())
    assert answer.status_code == 413


async def test_an_upload_has_to_keep_up_its_speed(client: httpx.AsyncClient) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for byte in FILE + END:
            yield bytes([byte])
            await asyncio.sleep(0.1)

    async with asyncio.timeout(8):
        answer = await post(client, trickle())
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "upload_too_slow")


async def test_a_slow_but_steady_upload_passes(client: httpx.AsyncClient) -> None:
    async def steady() -> AsyncIterator[bytes]:
        yield part("file", b"", "a.wav")[:-2]
        for _ in range(20):
            await asyncio.sleep(0.1)
            yield b"s" * 2000
        yield b"\r\n" + END

    assert (await post(client, steady())).status_code == 200
