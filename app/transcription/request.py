"""What may be asked of a transcription: the fields, their bounds, and the sentence that says what is wrong with one."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from app.errors import ApiError
from app.suggest import nearest

LANGUAGE_TAG = re.compile(r"([a-z]{2})(?:[-_][a-z0-9]{1,8})*", re.IGNORECASE)


class TranscriptionRequest(BaseModel):
    """One recording's wishes, as the form's fields give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Annotated[
        str | None,
        Field(description="What is spoken: an ISO 639-1 code such as `en`; `EN`, `en-US` and `zh_CN` are understood."),
    ] = None
    prompt: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="What to tell the model instead of the default instruction: plain text.",
        ),
    ] = None
    task: Annotated[
        Literal["transcribe", "translate"],
        Field(description="Write down what is said, or write it in `target_language`."),
    ] = "transcribe"
    target_language: Annotated[
        str | None,
        Field(
            description="Language to translate to, like `language`; English unless told. With `task=translate` only."
        ),
    ] = None
    temperature: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="0 takes the likeliest token each time; up to 1 samples more freely.",
        ),
    ] = 0.0
    max_tokens: Annotated[
        int | None,
        Field(ge=1, le=1_000_000, description="Most tokens of the answer; unset, what the model's context leaves."),
    ] = None
    response_format: Annotated[
        Literal["json", "text"], Field(description="Everything as JSON, or the words alone.")
    ] = "json"

    @field_validator("language", "target_language")
    @classmethod
    def _normalise(cls, tag: str | None, info: ValidationInfo) -> str | None:
        """A language tag to the ISO 639-1 code it begins with; raises ValueError for an unsupported one."""
        if tag is None:
            return None
        languages: Mapping[str, str] = (info.context or {})["languages"]
        match = LANGUAGE_TAG.fullmatch(tag.strip())
        code = match[1].lower() if match else None
        if code not in languages:
            raise ValueError(f"Not one of this model's languages: {', '.join(languages)}")
        return code

    @model_validator(mode="after")
    def _target_needs_translate(self) -> Self:
        if self.target_language is not None and self.task != "translate":
            raise ValueError("target_language goes with task=translate only")
        return self

    @classmethod
    def from_fields(cls, fields: Iterable[tuple[str, str]], languages: Mapping[str, str]) -> Self:
        """Read form fields, for a checkpoint that knows ``languages`` (ISO 639-1 to English name).

        Raises :class:`ApiError` (400) naming the field that is unknown, repeated or wrong.
        """
        values: dict[str, str] = {}
        for name, value in fields:
            if name not in cls.model_fields:
                allowed = ", ".join(("file", *cls.model_fields))
                raise ApiError(
                    400,
                    "unknown_field",
                    f"There is no field {name[:100]!r}{nearest(name, cls.model_fields)} The fields are: {allowed}.",
                    param=name[:100],
                )
            if name in values:
                raise ApiError(400, "repeated_field", f"The field {name} is there more than once.", param=name)
            values[name] = value
        try:
            return cls.model_validate(values, context={"languages": languages})
        except ValidationError as error:
            raise _wrong_value(error.errors(include_url=False)[0]) from None


def _wrong_value(error: Mapping[str, Any]) -> ApiError:
    """The one sentence for pydantic's first finding."""
    problem = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return ApiError(400, "invalid_value", f"{problem}.", param=problem.split()[0])
    field = str(error["loc"][0])
    code = "unsupported_language" if field.endswith("language") else "invalid_value"
    given = repr(str(error["input"])[:100])
    return ApiError(400, code, f"{field}={given}: {problem[0].lower()}{problem[1:]}.", param=field)
