"""``POST /transcribe``: one recording in, its words out."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.routes.disconnect import unless_disconnected
from app.routes.upload import read_upload
from app.service import Service
from app.transcription.render import Transcription, render
from app.transcription.request import TranscriptionRequest

router = APIRouter(tags=["transcription"])


def _form_schema() -> dict[str, Any]:
    """The form in OpenAPI's words; FastAPI cannot see it, because it is read under bounds of its own."""
    schema = TranscriptionRequest.model_json_schema()
    recording = {"type": "string", "format": "binary", "description": "The recording, in any common format."}
    schema["properties"] = {"file": recording, **schema["properties"]}
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post(
    "/transcribe", summary="Transcribe a recording", response_model=Transcription, openapi_extra=_form_schema()
)
async def transcribe(request: Request) -> Response:
    """Transcribe, or translate, one recording."""
    service: Service = request.app.state.service
    facts: dict[str, object] = request.state.log
    with service.admit() as transcriber:
        async with read_upload(request, service.settings) as upload:
            facts["bytes"] = upload.size
            wishes = TranscriptionRequest.from_fields(upload.fields, service.languages)
            answer = await unless_disconnected(request, transcriber.transcribe(upload.file, wishes))
    facts |= {
        "audio_seconds": answer.duration,
        **answer.timings.model_dump(),
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "finish_reason": answer.finish_reason,
    }
    return render(answer, wishes.response_format)
