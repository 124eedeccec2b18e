"""What an operator's tools ask: is it alive, is it ready, how is it doing."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.service import Service

router = APIRouter(tags=["operations"])


@router.get("/health/live", summary="Whether the process answers")
async def live() -> dict[str, str]:
    """Always 200."""
    return {"status": "alive"}


@router.get(
    "/health/ready", summary="Whether recordings are taken", responses={503: {"description": "Not, with the reason."}}
)
async def ready(request: Request) -> Response:
    """200 once a warm-up recording has been transcribed, else 503: starting, stopping, failed or dead, and why."""
    service: Service = request.app.state.service
    if service.state == "ready":
        return JSONResponse({"status": "ready"})
    return service.unavailable().response()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics() -> Response:
    """The service's own series and vLLM's."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
