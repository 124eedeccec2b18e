"""The application as built: its routes, and what its documentation says of the form."""

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from app.transcription.request import TranscriptionRequest

APP: FastAPI = create_app(Settings(_env_file=None))


def test_routes() -> None:
    assert {path: set(methods) for path, methods in APP.state.paths.items()} == {
        "/transcribe": {"POST"},
        "/health/live": {"GET"},
        "/health/ready": {"GET"},
        "/metrics": {"GET"},
    }


def test_the_form_is_documented() -> None:
    body = APP.openapi()["paths"]["/transcribe"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert list(body["properties"]) == ["file", *TranscriptionRequest.model_fields]
    assert body["required"] == ["file"]
    assert all(field["description"] for field in body["properties"].values())
