"""Around every request: its id, its log line, its metrics, and an orderly end to bodies that nobody reads."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.errors import ApiError, internal_error
from app.logs import REQUEST_ID

logger = logging.getLogger("app.requests")

REQUEST_ID_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT: Final = 499
LINGER_SECONDS: Final = 5.0
QUIET_ROUTES: Final = ("/health/live", "/health/ready", "/metrics")  # asked every few seconds: logged at debug level


class RequestContext:
    """ASGI middleware; ``routes`` give the labels of the metrics, so that a path nobody serves makes no series."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever it raises ends here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        REQUEST_ID.set(exchange.request_id)
        scope.setdefault("state", {})["log"] = exchange.facts
        route = _label(self._routes, scope)
        in_flight = metrics.REQUESTS_IN_FLIGHT.labels(route)
        in_flight.inc()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by the server, when a stop has taken too long
            await exchange.refuse(ApiError.unavailable("service_stopping", "The service is being stopped.", 10))
        except Exception:
            logger.exception("unforeseen error")
            await exchange.refuse(internal_error())
        finally:
            in_flight.dec()
            metrics.REQUESTS.labels(route, str(exchange.status)).inc()
            if "error" in exchange.facts:
                metrics.REJECTED.labels(exchange.facts["error"]).inc()
            logger.log(logging.DEBUG if route in QUIET_ROUTES else logging.INFO, "%s", exchange.line(route))


class _Exchange:
    """One request and its response, as they pass by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex
        self._more_to_come = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._started = time.monotonic()
        self._answering = False
        self.status = CLIENT_LEFT
        self.facts: dict[str, Any] = {}

    async def receive(self) -> Message:
        """Pass a message of the request on, and note when it was the last."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._more_to_come = False
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the response on."""
        if message["type"] == "http.response.start":
            self._answering = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            if self._more_to_come:
                headers["Connection"] = "close"
        elif not message.get("more_body", False) and self._more_to_come:
            # Closing a connection while the client still sends destroys the answer on its way; so read on for a while.
            await self._send({**message, "more_body": True})
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    while self._more_to_come:
                        await self.receive()
            except TimeoutError:
                pass
            message = {"type": "http.response.body"}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with ``error`` if there is no answer yet."""
        if not self._answering:
            self.facts["error"] = error.code
            await error.response()(self._scope, self.receive, self.send)

    def line(self, route: str) -> str:
        """What an operator wants to know of the request, as ``key=value``."""
        facts = {
            "method": self._scope["method"],
            "route": route,
            "status": self.status,
            "seconds": round(time.monotonic() - self._started, 3),
            **self.facts,
        }
        return " ".join(f"{key}={value}" for key, value in facts.items())


def _label(routes: Sequence[BaseRoute], scope: Scope) -> str:
    """The template of the route that ``scope`` is for."""
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            return str(getattr(route, "path", "unknown"))
    return "unknown"
