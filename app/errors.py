"""One error shape for every route, the one OpenAI's clients read: ``{"error": {message, type, param, code}}``."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.audio.decode import AudioError
from app.suggest import nearest


class ApiError(Exception):
    """A request that is answered with an error: status, message, code, the field it is about, and headers."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    @classmethod
    def unavailable(cls, code: str, message: str, retry_after: int) -> "ApiError":
        """503, with the seconds after which trying again makes sense."""
        return cls(503, code, message, headers={"Retry-After": str(retry_after)})

    def response(self) -> JSONResponse:
        """The answer."""
        kind = (
            "server_error"
            if self.status >= 500
            else "rate_limit_error"
            if self.status == 429
            else "invalid_request_error"
        )
        body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, self.status, self.headers)


def internal_error() -> ApiError:
    """A fault of the service; the log holds the traceback under the request's id."""
    return ApiError(
        500, "internal_error", "The service failed on this request; the fault is logged under its X-Request-ID."
    )


def install(app: FastAPI) -> None:
    """Answer every foreseen exception of ``app`` in the one shape; RequestContext answers the others."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        found = _as_api_error(request, error)
        request.state.log["error"] = found.code
        return found.response()

    for kind in (ApiError, AudioError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case AudioError():
            return ApiError(400, error.code, error.message, param="file")
        case RequestValidationError():
            first = error.errors()[0]
            field = str(first["loc"][-1])
            return ApiError(400, "invalid_value", f"{field}: {first['msg']}.", param=field)
        case HTTPException():
            return _http_error(request, error)
    raise error


def _http_error(request: Request, error: HTTPException) -> ApiError:
    """The router's own refusals: no such path, no such method."""
    paths: dict[str, set[str]] = request.app.state.paths
    headers = error.headers or {}
    if error.status_code == 404:
        path = request.url.path
        listing = ", ".join(f"{'/'.join(sorted(methods))} {known}" for known, methods in sorted(paths.items()))
        message = f"There is no {path[:200]!r} here{nearest(path, paths)} The routes are: {listing}."
        return ApiError(404, "unknown_path", message, headers=headers)
    if error.status_code == 405:
        allowed = headers.get("Allow", "")
        message = f"{request.url.path} does not take {request.method}; it takes {allowed}."
        return ApiError(405, "method_not_allowed", message, headers=headers)
    return ApiError(error.status_code, "http_error", str(error.detail), headers=headers)
