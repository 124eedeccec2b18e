"""A finished transcription as an HTTP answer."""

from typing import Literal

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field


class Usage(BaseModel):
    """What a transcription took."""

    audio_seconds: float = Field(description="Length of the recording, in seconds.")
    prompt_tokens: int = Field(description="Positions of the prompt, 12.5 for each second of audio included.")
    completion_tokens: int = Field(description="Tokens of the answer, its end included.")


class Timings(BaseModel):
    """Where the time went, in seconds."""

    decode: float = Field(description="Decoding the file and computing features.")
    queue: float = Field(description="Waiting, for a decoder and for the engine.")
    engine: float = Field(description="In the engine, from the first step to the last token.")


class Transcription(BaseModel):
    """The answer to `POST /transcribe`."""

    id: str
    model: str
    text: str
    language: str | None = Field(
        description="The language asked for, or the only one the model knows; null when neither."
    )
    task: Literal["transcribe", "translate"]
    duration: float = Field(description="Length of the recording, in seconds.")
    finish_reason: Literal["stop", "length"] = Field(
        description="`length` when the answer was cut by `max_tokens` or by the end of the model's context."
    )
    usage: Usage
    timings: Timings


def render(transcription: Transcription, response_format: Literal["json", "text"]) -> Response:
    """The answer in the format asked for; plain text says in a header whether it was cut."""
    if response_format == "text":
        return PlainTextResponse(transcription.text + "\n", headers={"X-Finish-Reason": transcription.finish_reason})
    return JSONResponse(transcription.model_dump())
