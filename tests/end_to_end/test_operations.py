"""What an operator sees: health, metrics, request ids, log lines."""

import httpx

from tests.app.recordings import sound, tone
from tests.conftest import Service
from tests.end_to_end.client import files, metric, transcribe


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_metrics_of_a_request(client: httpx.AsyncClient, service: Service) -> None:
    histograms = [
        "kimi_upload_bytes",
        "kimi_audio_seconds",
        "kimi_decode_seconds",
        "kimi_queue_seconds",
        "kimi_engine_seconds",
        "kimi_time_to_first_token_seconds",
        "kimi_real_time_factor",
    ]

    def counts() -> dict[str, float]:
        return {name: metric(service.address, f"{name}_count") for name in histograms}

    def tokens() -> tuple[float, float]:
        names = ("kimi_prompt_tokens_total", "kimi_completion_tokens_total")
        return metric(service.address, names[0]), metric(service.address, names[1])

    def answered() -> float:
        return metric(service.address, "kimi_requests_total", route="/transcribe", status="200")

    before = counts(), tokens(), answered(), metric(service.address, "kimi_audio_seconds_sum")
    usage = (await transcribe(client, sound(tone(2.5)), max_tokens="4"))["usage"]
    assert counts() == {name: value + 1 for name, value in before[0].items()}
    assert tokens() == (before[1][0] + usage["prompt_tokens"], before[1][1] + usage["completion_tokens"])
    assert answered() == before[2] + 1
    assert metric(service.address, "kimi_audio_seconds_sum") == before[3] + 2.5
    assert metric(service.address, "kimi_engine_ready") == 1
    assert metric(service.address, "kimi_requests_in_flight", route="/transcribe") == 0


async def test_vllms_series_are_there(client: httpx.AsyncClient, service: Service) -> None:
    await transcribe(client, sound(tone(1)), max_tokens="2")
    assert metric(service.address, "vllm:generation_tokens_total") > 0
    assert metric(service.address, "vllm:prompt_tokens_total") > 0


async def test_refusals_are_counted(client: httpx.AsyncClient, service: Service) -> None:
    before = metric(service.address, "kimi_rejected_total", reason="empty_file")
    await client.post("/transcribe", files=files(b""))
    assert metric(service.address, "kimi_rejected_total", reason="empty_file") == before + 1


async def test_paths_that_nobody_serves_make_one_series(client: httpx.AsyncClient) -> None:
    for n in range(5):
        await client.get(f"/made-up-{n}")
    assert "made-up" not in (await client.get("/metrics")).text


async def test_a_request_can_be_found_in_the_log(client: httpx.AsyncClient, service: Service) -> None:
    headers = {"X-Request-ID": "find-me-42"}
    answer = await client.post(
        "/transcribe", files=files(sound(tone(1)), "secret-name.wav"), data={"max_tokens": "3"}, headers=headers
    )
    assert answer.headers["x-request-id"] == "find-me-42"
    log = service.log.read_text(errors="replace")
    (line,) = [line for line in log.splitlines() if "request_id=find-me-42" in line]
    for fact in (
        "method=POST",
        "route=/transcribe",
        "status=200",
        "bytes=",
        "audio_seconds=1.0",
        "completion_tokens=",
    ):
        assert fact in line
    assert "secret-name" not in log
    assert "Traceback" not in log


async def test_the_interface_is_documented(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {"/transcribe", "/health/live", "/health/ready", "/metrics"}
