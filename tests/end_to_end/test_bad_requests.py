"""Whatever somebody sends wrong is answered with its own 4xx, and disturbs nobody."""

import asyncio
import contextlib
import re
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.app.recordings import RATE, bad_recordings, sound, tone
from tests.conftest import Service
from tests.end_to_end.client import error, files, speech, transcribe

GOOD = sound(tone(1))
BAD = bad_recordings()


@pytest.mark.parametrize("name", BAD)
async def test_bad_recordings(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/transcribe", files=files(BAD[name]))
    assert error(answer) == (400, name.partition(":")[0], "file")


@pytest.mark.parametrize(
    ("request_", "status", "code", "param"),
    [
        ({"files": {"language": (None, "en")}}, 400, "missing_file", "file"),
        ({"files": [("file", ("a.wav", GOOD)), ("file", ("b.wav", GOOD))]}, 400, "several_files", "file"),
        ({"files": {"file": (None, "words")}}, 400, "file_is_text", "file"),
        ({"files": {"file": ("a.wav", GOOD), "prompt": ("p.txt", b"x")}}, 400, "unexpected_file", "prompt"),
        ({"files": files(GOOD), "data": {"language": "xx"}}, 400, "unsupported_language", "language"),
        ({"files": files(GOOD), "data": {"temperature": "hot"}}, 400, "invalid_value", "temperature"),
        ({"files": files(GOOD), "data": {"task": "sing"}}, 400, "invalid_value", "task"),
        ({"files": files(GOOD), "data": {"max_tokens": "0"}}, 400, "invalid_value", "max_tokens"),
        ({"files": files(GOOD), "data": {"max_tokens": "999999"}}, 400, "context_exceeded", "max_tokens"),
        ({"files": files(GOOD), "data": {"response_format": "srt"}}, 400, "invalid_value", "response_format"),
        ({"files": files(GOOD), "data": {"target_language": "en"}}, 400, "invalid_value", "target_language"),
        ({"files": files(GOOD), "data": {"langauge": "en"}}, 400, "unknown_field", "langauge"),
        ({"files": files(GOOD), "data": {"task": ["transcribe", "translate"]}}, 400, "repeated_field", "task"),
        ({"json": {"file": "UklGRg=="}}, 415, "unsupported_media_type", None),
        ({"data": {"file": "x"}}, 415, "unsupported_media_type", None),
        ({"content": GOOD, "headers": {"Content-Type": "audio/wav"}}, 415, "unsupported_media_type", None),
        ({}, 415, "unsupported_media_type", None),
        (
            {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}},
            400, "malformed_multipart", None,
        ),
    ],
)  # fmt: skip
async def test_bad_forms(
    client: httpx.AsyncClient, request_: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    assert error(await client.post("/transcribe", **request_)) == (status, code, param)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/transcribe", 405, "method_not_allowed"),
        ("PUT", "/transcribe", 405, "method_not_allowed"),
        ("POST", "/health/ready", 405, "method_not_allowed"),
        ("POST", "/transcribe/", 404, "unknown_path"),
        ("POST", "/v1/audio", 404, "unknown_path"),
        ("GET", "/%ff%00..%2f", 404, "unknown_path"),
    ],
)
async def test_wrong_paths_and_methods(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    assert error(await client.request(method, path)) == (status, code, None)


async def raw(service: Service, request: bytes) -> bytes:
    """What comes back for ``request``, with the connection left open on this side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(service.address).port)
    with contextlib.closing(writer):
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 60)


async def test_a_recording_that_does_not_fit_the_context(client: httpx.AsyncClient) -> None:
    """The error says how many seconds fit, and so many do."""
    answer = await client.post("/transcribe", files=files(GOOD), data={"max_tokens": "999999"})
    context = int(re.search(r"context of (\d+) tokens", answer.json()["error"]["message"])[1])
    fields = {"max_tokens": str(context - 80)}
    answer = await client.post("/transcribe", files=files(sound(np.zeros(20 * RATE, np.int16))), data=fields)
    assert error(answer) == (400, "audio_too_long", "file")
    fits = float(re.search(r"longer than ([\d.]+) seconds", answer.json()["error"]["message"])[1])
    assert 1 < fits < 7
    for samples, status in ((round(fits * RATE), 200), (round(fits * RATE) + 1, 400)):
        data = sound(np.zeros(samples, np.int16))
        assert (await client.post("/transcribe", files=files(data), data=fields)).status_code == status


HEAD = b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"


async def test_a_body_that_is_announced_too_large(service: Service) -> None:
    answer = await raw(service, HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"body_too_large"' in answer


async def test_a_body_that_grows_too_large(client: httpx.AsyncClient) -> None:
    """101 MiB in chunks of unknown number: refused when the limit is passed, and the client can read it."""

    async def body() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(101):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert error(await client.post("/transcribe", content=body(), headers=headers)) == (413, "body_too_large", None)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"5, 6", b""])
async def test_a_content_length_that_is_none(service: Service, length: bytes) -> None:
    answer = await raw(service, HEAD + b"Content-Length: " + length + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")


async def test_an_upload_that_never_goes_on(service: Service) -> None:
    """And meanwhile others are served."""
    stuck = asyncio.create_task(raw(service, HEAD + b"Content-Length: 100000\r\n\r\n--b\r\n"))
    async with httpx.AsyncClient(base_url=service.address, timeout=120) as client:
        await transcribe(client, GOOD, max_tokens="4")
    assert not stuck.done()
    answer = await stuck
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"upload_too_slow"' in answer


async def test_good_requests_among_bad_ones(client: httpx.AsyncClient, service: Service) -> None:
    """The good ones' answers do not change, and the same processes go on."""
    good = sound(speech(), kind="FLAC")
    alone = (await transcribe(client, good, max_tokens="16"))["text"]
    before = {child.pid for child in psutil.Process(service.pid).children(recursive=True)}
    bad = [client.post("/transcribe", files=files(data)) for data in BAD.values()]
    fine = [transcribe(client, good, max_tokens="16") for _ in range(8)]
    answers, texts = await asyncio.gather(asyncio.gather(*bad), asyncio.gather(*fine))
    assert {answer.status_code for answer in answers} == {400}
    assert {text["text"] for text in texts} == {alone}
    assert {child.pid for child in psutil.Process(service.pid).children(recursive=True)} == before
