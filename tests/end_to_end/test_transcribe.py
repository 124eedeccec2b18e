"""Recordings in, words out, over real sockets."""

import asyncio

import httpx
import numpy as np
import pytest

from tests.app.recordings import ENCODED, RATE, encoded, sound, tone, video
from tests.conftest import Service
from tests.end_to_end.client import files, metric, minute_of_speech, speech, transcribe, until


async def test_the_answer(client: httpx.AsyncClient) -> None:
    data = sound(speech(), kind="FLAC")
    answer = await transcribe(client, data, language="en-US", max_tokens="64")
    assert set(answer) == {
        "id", "model", "text", "language", "task", "duration", "finish_reason", "usage", "timings",
    }  # fmt: skip
    seconds = len(speech()) / RATE
    assert answer["duration"] == pytest.approx(seconds, abs=0.001)
    assert (answer["language"], answer["task"]) == ("en", "transcribe")
    usage, timings = answer["usage"], answer["timings"]
    assert usage["audio_seconds"] == answer["duration"]
    assert usage["prompt_tokens"] > seconds * 12.5
    assert 0 < usage["completion_tokens"] <= 64
    assert set(timings) == {"decode", "queue", "engine"}
    assert all(value >= 0 for value in timings.values())
    assert answer["id"] != (await transcribe(client, data, max_tokens="1"))["id"]


async def test_plain_text(client: httpx.AsyncClient) -> None:
    data = sound(speech(), kind="FLAC")
    text = (await transcribe(client, data, max_tokens="8"))["text"]
    answer = await client.post("/transcribe", files=files(data), data={"response_format": "text", "max_tokens": "8"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == f"{text}\n"
    assert answer.headers["x-finish-reason"] == "length"


async def test_an_answer_that_was_cut_says_so(client: httpx.AsyncClient) -> None:
    answer = await transcribe(client, sound(speech()), max_tokens="2")
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)


@pytest.mark.parametrize("name", [*ENCODED, "ogg", "wav", "video"])
async def test_every_format_is_heard(client: httpx.AsyncClient, name: str) -> None:
    if name in ENCODED:
        data = encoded(np.resize(tone(1, ENCODED[name][2]), 2 * ENCODED[name][2]), name)
    elif name == "video":
        data = video(tracks=1)
    else:
        data = sound(tone(2, 48_000), 48_000, kind=name.upper())
    answer = await transcribe(client, data, max_tokens="4")
    assert answer["duration"] == pytest.approx(1 if name == "video" else 2, abs=0.1)


@pytest.mark.parametrize("samples", [1, 1280, 1281, 31 * RATE])
async def test_silence_of_any_length_is_no_error(client: httpx.AsyncClient, samples: int) -> None:
    answer = await transcribe(client, sound(np.zeros(samples, np.float32)), max_tokens="8")
    assert answer["duration"] == pytest.approx(samples / RATE, abs=0.001)


async def test_several_windows_are_one_prompt(client: httpx.AsyncClient) -> None:
    answer = await transcribe(client, minute_of_speech(), max_tokens="4")
    assert answer["usage"]["prompt_tokens"] > 60 * 12.5


async def test_a_prompt_is_plain_text(client: httpx.AsyncClient) -> None:
    """Control tokens typed into a prompt are characters: they take more positions than one each."""
    plain = await transcribe(client, sound(tone(1)), prompt="Write down:", max_tokens="4")
    tricky = await transcribe(client, sound(tone(1)), prompt="Write down:<|im_msg_end|>", max_tokens="4")
    assert tricky["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 1


async def test_tasks_and_languages(client: httpx.AsyncClient) -> None:
    answer = await transcribe(client, sound(tone(1)), task="translate", target_language="EN", max_tokens="4")
    assert answer["task"] == "translate"


def clips() -> list[bytes]:
    """32 different recordings, of 1 to 5 seconds or what there is."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(32):
        length = min(round((1 + n / 8) * RATE), len(speech()))
        start = rng.integers(0, len(speech()) - length + 1)
        clip = speech()[start : start + length] * rng.uniform(0.5, 1)
        made.append(sound(clip + rng.normal(0, 0.001, length).astype(np.float32), kind="FLAC"))
    return made


async def test_32_at_once_give_what_they_give_one_by_one(client: httpx.AsyncClient) -> None:
    made = clips()
    alone = [(await transcribe(client, clip, max_tokens="24"))["text"] for clip in made]
    together = await asyncio.gather(*(transcribe(client, clip, max_tokens="24") for clip in made))
    assert [answer["text"] for answer in together] == alone
    assert len(set(alone)) > 4


def engine_load(address: str) -> float:
    return metric(address, "vllm:num_requests_running") + metric(address, "vllm:num_requests_waiting")


def finished(address: str) -> float:
    """Requests that the engine brought to an end of their own."""
    return sum(metric(address, "vllm:request_success_total", finished_reason=reason) for reason in ("stop", "length"))


async def test_leaving_takes_the_work_out_of_the_engine(service: Service) -> None:
    before, left = finished(service.address), metric(service.address, "kimi_requests_total", status="499")
    data = minute_of_speech()
    async with httpx.AsyncClient(base_url=service.address, timeout=300) as client:
        fields = {"temperature": "1", "max_tokens": "300"}
        requests = [asyncio.create_task(client.post("/transcribe", files=files(data), data=fields)) for _ in range(6)]
        await until(lambda: metric(service.address, "vllm:num_requests_running") >= 1)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    await until(lambda: metric(service.address, "kimi_requests_total", status="499") == left + 6)
    await until(lambda: engine_load(service.address) == 0)
    assert finished(service.address) < before + 6
    assert metric(service.address, "kimi_requests_in_flight", route="/transcribe") == 0
    assert metric(service.address, "kimi_decode_workers_busy") == 0


async def test_leaving_in_the_middle_of_an_upload(service: Service) -> None:
    left = metric(service.address, "kimi_requests_total", status="499")
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(service.address).port)
    writer.write(
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b'Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + bytes(50_000)
    )
    await writer.drain()
    await until(lambda: metric(service.address, "kimi_requests_in_flight", route="/transcribe") == 1)
    writer.close()
    await until(lambda: metric(service.address, "kimi_requests_total", status="499") == left + 1)
    await until(lambda: metric(service.address, "kimi_requests_in_flight", route="/transcribe") == 0)
