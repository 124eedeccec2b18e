"""A transcription as JSON and as text."""

import json

import pytest

from app.transcription.render import Timings, Transcription, Usage, render

ANSWER = Transcription(
    id="transcription-1",
    model="embedded",
    text="grüße, 世界",
    language="en",
    task="transcribe",
    duration=1.5,
    finish_reason="length",
    usage=Usage(audio_seconds=1.5, prompt_tokens=40, completion_tokens=5),
    timings=Timings(decode=0.1, queue=0.0, engine=0.2),
)


def test_json_is_the_model() -> None:
    answer = render(ANSWER, "json")
    assert answer.media_type == "application/json"
    assert Transcription.model_validate(json.loads(bytes(answer.body))) == ANSWER


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_text_is_the_words_and_a_header_tells_whether_they_were_cut(reason: str) -> None:
    answer = render(ANSWER.model_copy(update={"finish_reason": reason}), "text")
    assert bytes(answer.body).decode() == "grüße, 世界\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-finish-reason"] == reason
