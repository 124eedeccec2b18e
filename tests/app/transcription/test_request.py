"""What may be asked: normalised where it is clear, refused with the field's name where it is not."""

import pytest

from app.errors import ApiError
from app.transcription.request import TranscriptionRequest

LANGUAGES = {"zh": "Chinese", "en": "English", "de": "German"}


def read(*fields: tuple[str, str]) -> TranscriptionRequest:
    return TranscriptionRequest.from_fields(fields, LANGUAGES)


def test_nothing_asked_is_a_greedy_transcription_as_json() -> None:
    request = read()
    assert (request.task, request.temperature, request.response_format) == ("transcribe", 0.0, "json")
    assert request.language is request.prompt is request.max_tokens is None


@pytest.mark.parametrize(
    ("tag", "code"),
    [("en", "en"), ("EN", "en"), ("en-US", "en"), ("zh_CN", "zh"), ("zh-Hant-TW", "zh"), (" de ", "de")],
)
def test_language_tags(tag: str, code: str) -> None:
    assert read(("language", tag)).language == code
    assert read(("task", "translate"), ("target_language", tag)).target_language == code


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ([("language", "fr")], "unsupported_language", "language", "zh, en, de"),
        ([("language", "english")], "unsupported_language", "language", "zh, en, de"),
        ([("language", "")], "unsupported_language", "language", "zh, en, de"),
        ([("language", "e\u0301n")], "unsupported_language", "language", "zh, en, de"),
        ([("task", "translate"), ("target_language", "xx")], "unsupported_language", "target_language", "zh, en, de"),
        ([("target_language", "en")], "invalid_value", "target_language", "task=translate"),
        ([("task", "summarise")], "invalid_value", "task", "'transcribe' or 'translate'"),
        ([("temperature", "warm")], "invalid_value", "temperature", "number"),
        ([("temperature", "1.01")], "invalid_value", "temperature", "less than or equal to 1"),
        ([("temperature", "-0.1")], "invalid_value", "temperature", "greater than or equal to 0"),
        ([("temperature", "nan")], "invalid_value", "temperature", "finite"),
        ([("max_tokens", "0")], "invalid_value", "max_tokens", "greater than or equal to 1"),
        ([("max_tokens", "2.5")], "invalid_value", "max_tokens", "integer"),
        ([("max_tokens", "9" * 5000)], "invalid_value", "max_tokens", "max_tokens='999"),
        ([("prompt", "")], "invalid_value", "prompt", "at least 1 character"),
        ([("prompt", "x" * 4097)], "invalid_value", "prompt", "at most 4096"),
        ([("response_format", "srt")], "invalid_value", "response_format", "'json' or 'text'"),
        ([("langauge", "en")], "unknown_field", "langauge", "did you mean language?"),
        ([("model", "whisper-1")], "unknown_field", "model", "The fields are: file, language, prompt"),
        ([("task", "transcribe"), ("task", "translate")], "repeated_field", "task", "more than once"),
    ],
)
def test_what_is_wrong_is_named(fields: list[tuple[str, str]], code: str, param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(*fields)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, code, param)
    assert words in error.message
    assert len(error.message) < 400
    assert error.message.endswith(".")
