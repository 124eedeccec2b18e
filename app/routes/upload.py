"""A multipart body, read under bounds: bytes, speed and number of parts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from app import metrics
from app.errors import ApiError
from app.settings import Settings

MAX_FILES = 8
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Upload:
    """A form with one recording: text fields in order, the file (it has a descriptor), the bytes of it all."""

    fields: list[tuple[str, str]]
    file: BinaryIO
    size: int


@asynccontextmanager
async def read_upload(request: Request, settings: Settings) -> AsyncIterator[Upload]:
    """Read the form of ``request``; its file is gone when the context ends.

    Raises :class:`ApiError` (400, 408, 413, 415) for what is not a form with one recording, and ClientDisconnect.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        message = "Send the recording as multipart/form-data: curl -F file=@recording.wav"
        raise ApiError(415, "unsupported_media_type", message)
    if int(request.headers.get("content-length", 0)) > settings.max_upload_bytes:
        raise _too_large(settings)
    body = _Body(request, settings)
    parser = _Parser(
        request.headers, body.chunks(), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _malformed(error.message) from None
    except (UnicodeError, LookupError):
        raise _malformed("Its headers cannot be decoded.") from None
    except OSError:
        raise ApiError.unavailable("storage_full", "There is no room to store uploads.", 30) from None
    try:
        if not parser.complete:
            raise _malformed("Its closing boundary is missing.")
        metrics.UPLOAD_BYTES.observe(body.size)
        yield _sorted(form, body.size)
    finally:
        await form.close()


class _Body:
    """The bytes of a request as they come, and how many there were."""

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self.size = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Pieces of the body; raises when it grows too large, comes too slowly, or the client leaves."""
        settings = self._settings
        started = asyncio.get_running_loop().time()
        more = True
        while more:
            try:
                async with asyncio.timeout_at(started + settings.upload_grace + self.size / settings.min_upload_rate):
                    message = await self._request.receive()
            except TimeoutError:
                rate = f"{settings.min_upload_rate} bytes a second"
                raise ApiError(
                    408, "upload_too_slow", f"The upload came to {self.size} bytes, slower than {rate}."
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            self.size += len(chunk)
            if self.size > settings.max_upload_bytes:
                raise _too_large(settings)
            more = message.get("more_body", False)
            if chunk:
                yield chunk


class _Parser(MultiPartParser):
    """Starlette's parser, which accepts a form that breaks off and text that is not UTF-8; this one tells."""

    complete = False

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._charset = "utf-8"  # whatever the Content-Type says: a form's text is UTF-8 (RFC 7578)

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise MultiPartException(
                    f"The field {self._current_part.field_name[:100]!r} is not UTF-8 text."
                ) from None
        super().on_part_end()

    def on_end(self) -> None:
        self.complete = True


def _sorted(form: FormData, size: int) -> Upload:
    """The recording and the text fields; raises :class:`ApiError` when there is not exactly one recording."""
    files: list[UploadFile] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.append((name, value))
        elif name == "file":
            files.append(value)
        else:
            raise ApiError(
                400, "unexpected_file", f"{name[:100]!r} is a file; the recording goes in file.", param=name[:100]
            )
    if any(name == "file" for name, _ in fields):
        message = "file is text; send it as a file: curl -F file=@recording.wav"
        raise ApiError(400, "file_is_text", message, param="file")
    if not files:
        raise ApiError(
            400, "missing_file", "There is no recording; send one in file: curl -F file=@recording.wav", param="file"
        )
    if len(files) > 1:
        raise ApiError(400, "several_files", f"There are {len(files)} recordings; send one at a time.", param="file")
    spooled = files[0].file
    spooled.fileno()  # moves a small upload from memory to a file
    spooled.flush()
    return Upload(fields, spooled, size)


def _malformed(detail: str) -> ApiError:
    return ApiError(400, "malformed_multipart", f"The body is not a well-formed multipart form. {detail}")


def _too_large(settings: Settings) -> ApiError:
    return ApiError(
        413, "body_too_large", f"The body is larger than {settings.max_upload_bytes} bytes, the most that is taken."
    )
