"""Uvicorn, and what it lacks: bounds on a request's head, exit status 0 on a signal, an end when the service ends."""

import asyncio
import signal
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import ApiError
from app.main import create_app
from app.service import Service
from app.settings import Settings

HEAD_SECONDS: Final = 10.0
HEAD_BYTES: Final = 64 * 1024
LAST_WORDS_SECONDS: Final = 3.0  # in which a service that has failed or died still says why


class Protocol(HttpToolsProtocol):
    """HTTP whose request heads come within :data:`HEAD_SECONDS` and :data:`HEAD_BYTES`."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing."""
        self._head_complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes until the head is complete."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Expect a head, the first or one more on a kept connection."""
        super().on_message_begin()
        if not self._head_timer:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Expect nothing more."""
        self._head_complete()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the shape of every other error."""
        error = ApiError(400, "invalid_http", f"{msg.rstrip('.')}.").response()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(error.body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + bytes(error.body))
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _head_complete(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """Serves the application until a signal comes, or until the service has failed or died."""

    def __init__(self, settings: Settings) -> None:
        self._app: FastAPI = create_app(settings)
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                http=Protocol,
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=settings.shutdown_timeout,
            )
        )

    def serve_until_stopped(self) -> int:
        """Serve; returns the process's exit status: 0 after a signal, 1 when the service could not go on."""
        # Uvicorn raises the signal that stopped it again when it has finished: these make that harmless.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        with suppress(SystemExit):  # uvicorn has logged why it could not start
            self.run()
        service: Service | None = getattr(self._app.state, "service", None)
        return 0 if self.started and service and not service.ended.is_set() else 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal: let nobody in any more, then let uvicorn finish what is under way."""
        if service := getattr(self._app.state, "service", None):
            service.stopping()
        super().handle_exit(sig, frame)

    async def main_loop(self) -> None:
        """Also end when the service has."""
        watch = asyncio.create_task(self._end_with_service())
        await super().main_loop()
        watch.cancel()

    async def _end_with_service(self) -> None:
        service: Service = self._app.state.service
        await service.ended.wait()
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self.should_exit = True
