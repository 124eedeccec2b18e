"""The one error shape, for everything that the router and the routes raise."""

import json
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Query

from app import errors
from app.audio.decode import AudioError
from app.errors import ApiError
from app.middleware import RequestContext


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI(redirect_slashes=False)

    @app.get("/api")
    async def api() -> None:
        raise ApiError.unavailable("engine_stopped", "Gone.", 7)

    @app.get("/busy")
    async def busy() -> None:
        raise ApiError(429, "too_many_requests", "Full.")

    @app.get("/audio")
    async def audio() -> None:
        raise AudioError("empty_audio", "Nothing there.")

    @app.get("/fault")
    async def fault() -> None:
        raise KeyError("secret")

    @app.get("/number")
    async def number(n: Annotated[int, Query()]) -> int:
        return n

    app.state.paths = {"/audio": {"GET"}, "/fault": {"GET"}}
    errors.install(app)
    app.add_middleware(RequestContext, routes=app.routes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "param", "code"),
    [
        ("GET", "/api", 503, "server_error", None, "engine_stopped"),
        ("GET", "/busy", 429, "rate_limit_error", None, "too_many_requests"),
        ("GET", "/audio", 400, "invalid_request_error", "file", "empty_audio"),
        ("GET", "/fault", 500, "server_error", None, "internal_error"),
        ("GET", "/number?n=x", 400, "invalid_request_error", "n", "invalid_value"),
        ("GET", "/number", 400, "invalid_request_error", "n", "invalid_value"),
        ("GET", "/nowhere", 404, "invalid_request_error", None, "unknown_path"),
        ("GET", "/audio/", 404, "invalid_request_error", None, "unknown_path"),
        ("DELETE", "/audio", 405, "invalid_request_error", None, "method_not_allowed"),
    ],
)
async def test_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, kind: str, param: str | None, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert "secret" not in json.dumps(error)
    assert answer.headers["x-request-id"]


async def test_headers_come_along(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api")).headers["retry-after"] == "7"
    assert (await client.delete("/audio")).headers["allow"] == "GET"


async def test_an_unknown_path_names_the_nearest_and_all(client: httpx.AsyncClient) -> None:
    message = (await client.get("/adio")).json()["error"]["message"]
    assert "did you mean /audio?" in message
    assert "GET /audio, GET /fault" in message
