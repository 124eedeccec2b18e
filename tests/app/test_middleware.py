"""Around a request: ids, log lines, metrics with bounded labels."""

import logging

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from app import errors, logs
from app.middleware import RequestContext


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: str) -> str:
        logging.getLogger("app.test").info("inside")
        return item

    app.state.paths = {}
    errors.install(app)
    app.add_middleware(RequestContext, routes=app.routes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def count(route: str, status: str) -> float:
    return REGISTRY.get_sample_value("kimi_requests_total", {"route": route, "status": status}) or 0.0


async def test_an_id_is_passed_through_and_reaches_every_log_line(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(logs._RequestId())
    with caplog.at_level(logging.INFO):
        answer = await client.get("/items/7", headers={"X-Request-ID": "call-42"})
    assert answer.headers["x-request-id"] == "call-42"
    lines = [record for record in caplog.records if record.name.startswith("app.")]
    assert [record.name for record in lines] == ["app.test", "app.requests"]
    assert {record.request_id for record in lines} == {"call-42"}
    assert lines[-1].getMessage().startswith("method=GET route=/items/{item} status=200 seconds=")


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "\u00e9"])
async def test_an_id_that_would_spoil_a_log_line_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/items/7", headers={"X-Request-ID": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32


async def test_labels_are_templates(client: httpx.AsyncClient) -> None:
    before = count("/items/{item}", "200"), count("unknown", "404")
    for name in ("a", "b"):
        await client.get(f"/items/{name}")
        await client.get(f"/nowhere/{name}")
    assert (count("/items/{item}", "200"), count("unknown", "404")) == (before[0] + 2, before[1] + 2)
    assert REGISTRY.get_sample_value("kimi_requests_in_flight", {"route": "/items/{item}"}) == 0
    assert count("/nowhere/a", "404") == 0


async def test_refusals_are_counted_by_code(client: httpx.AsyncClient) -> None:
    before = REGISTRY.get_sample_value("kimi_rejected_total", {"reason": "unknown_path"}) or 0.0
    await client.get("/nowhere")
    assert REGISTRY.get_sample_value("kimi_rejected_total", {"reason": "unknown_path"}) == before + 1
