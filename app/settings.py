"""Every knob of the service, once: the ``KIMI_*`` environment variables, their types, bounds and meaning.

``python -m app.settings`` prints the table of the README.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.suggest import nearest

PREFIX = "KIMI_"


class SettingsError(Exception):
    """A setting that cannot be used; the message is one sentence that names the variable."""


class Settings(BaseSettings):
    """What the environment says; :func:`load` reads it and turns what is wrong into one sentence."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True, protected_namespaces=())

    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")] = 8000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe log lines that are written.")
    ] = "info"

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="`embedded`, a folder, or a Hugging Face Hub id such as `moonshotai/Kimi-Audio-7B-Instruct`.",
        ),
    ] = "embedded"
    speech_tokenizer: Annotated[
        str | None,
        Field(description="Folder or Hub id of the speech tokenizer, or `off`; unset, the one beside the checkpoint."),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="Arithmetic of the model; `auto`: the checkpoint's own, float32 on a CPU without bfloat16."),
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Field(ge=64, description="Positions of a prompt and its answer together; unset, all that the checkpoint has."),
    ] = None
    max_num_seqs: Annotated[
        int, Field(ge=1, le=1024, description="Recordings that the engine works on at the same time.")
    ] = 32
    gpu_memory_utilization: Annotated[
        float, Field(gt=0, le=1, description="Share of a GPU's memory that the engine takes.")
    ] = 0.9
    cpu_kv_cache_gib: Annotated[
        int, Field(ge=1, le=1024, description="GiB of key-value cache when running on a CPU.")
    ] = 1
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64, description="GPUs that share each layer.")] = 1
    pipeline_parallel_size: Annotated[
        int, Field(ge=1, le=64, description="Groups of GPUs that the layers are divided among.")
    ] = 1
    enforce_eager: Annotated[
        bool | None,
        Field(description="Run the model without compiling it; unset, on a CPU only: there it takes a C++ compiler."),
    ] = None

    max_upload_bytes: Annotated[int, Field(ge=1024, le=2**34, description="Largest request body, in bytes.")] = (
        100 * 2**20
    )
    upload_grace: Annotated[
        float, Field(gt=0, le=3600, description="Seconds an upload may take before its speed counts.")
    ] = 10.0
    min_upload_rate: Annotated[
        int,
        Field(ge=1, le=2**30, description="Bytes a second that an upload has to keep up after `KIMI_UPLOAD_GRACE`."),
    ] = 4096
    max_audio_seconds: Annotated[
        float, Field(gt=0, le=86_400, description="Longest recording, in seconds; the model's context may allow less.")
    ] = 3600.0
    max_channels: Annotated[int, Field(ge=1, le=64, description="Most channels of a recording.")] = 8
    decode_workers: Annotated[
        int, Field(ge=1, le=64, description="Processes that decode recordings and compute features.")
    ] = max(1, min(4, (os.cpu_count() or 1) // 2))
    decode_timeout: Annotated[
        float, Field(gt=0, le=3600, description="Seconds that decoding one recording may take.")
    ] = 60.0
    decode_memory_mib: Annotated[
        int, Field(ge=64, le=2**20, description="MiB that decoding one recording may take in its process.")
    ] = 1024
    max_requests: Annotated[
        int, Field(ge=1, le=100_000, description="Recordings under way or waiting; one more is answered with 429.")
    ] = 256
    request_timeout: Annotated[
        float,
        Field(
            gt=0, le=86_400, description="Seconds from the end of an upload within which the answer is given, or 503."
        ),
    ] = 600.0
    shutdown_timeout: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="Seconds that requests under way are given to finish when the service is stopped.",
        ),
    ] = 30


def load() -> Settings:
    """Read the environment; raises :class:`SettingsError` for a wrong value or an unknown ``KIMI_`` variable."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise SettingsError(f"{variable} is not a setting{nearest(variable.upper(), known)}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        raise SettingsError(
            f"{variable}={first['input']!r} cannot be used: {first['msg'][0].lower()}{first['msg'][1:]}."
        ) from None


def markdown_table() -> str:
    """The settings as a Markdown table: variable, default, bounds, meaning."""
    rows = ["| variable | default | values | meaning |", "| --- | --- | --- | --- |"]
    for name, schema in Settings.model_json_schema()["properties"].items():
        default = "unset" if schema.get("default") is None else f"`{schema['default']}`"
        if name == "decode_workers":
            default = "half the CPUs, 1 to 4"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {_values(schema)} | {schema['description']} |")
    return "\n".join(rows)


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    schema = next((option for option in schema.get("anyOf", []) if option["type"] != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] in ("string", "boolean"):
        return {"string": "text", "boolean": "`true`, `false`"}[schema["type"]]
    low = (
        f"above {schema['exclusiveMinimum']:,.12g}"
        if "exclusiveMinimum" in schema
        else f"from {schema['minimum']:,.12g}"
    )
    return f"{low} to {schema['maximum']:,.12g}" if "maximum" in schema else low


if __name__ == "__main__":
    print(markdown_table())
