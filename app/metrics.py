"""Every Prometheus series of the service; vLLM adds its own, ``vllm:``, to the same registry."""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REQUESTS = Counter("kimi_requests_total", "Requests answered; 499 where the client left first.", ["route", "status"])
REQUESTS_IN_FLIGHT = Gauge("kimi_requests_in_flight", "Requests being read, worked on or answered.", ["route"])
REJECTED = Counter("kimi_rejected_total", "Requests answered with an error, by its code.", ["reason"])
UPLOAD_BYTES = Histogram(
    "kimi_upload_bytes", "Size of request bodies with a recording, in bytes.", buckets=[4.0**n for n in range(5, 17)]
)
AUDIO_SECONDS = Histogram(
    "kimi_audio_seconds",
    "Length of recordings, in seconds.",
    buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200),
)
DECODE_SECONDS = Histogram("kimi_decode_seconds", "Decoding and features of a recording, in seconds.", buckets=_SECONDS)
QUEUE_SECONDS = Histogram(
    "kimi_queue_seconds", "Waiting for a decoder and for the engine, in seconds.", buckets=_SECONDS
)
ENGINE_SECONDS = Histogram("kimi_engine_seconds", "A recording's time in the engine, in seconds.", buckets=_SECONDS)
TIME_TO_FIRST_TOKEN = Histogram(
    "kimi_time_to_first_token_seconds", "From the end of an upload to the first token, in seconds.", buckets=_SECONDS
)
REAL_TIME_FACTOR = Histogram(
    "kimi_real_time_factor",
    "Seconds from the end of an upload to the last token, per second of audio.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
PROMPT_TOKENS = Counter("kimi_prompt_tokens_total", "Prompt positions, audio included.")
COMPLETION_TOKENS = Counter("kimi_completion_tokens_total", "Tokens that the engine produced.")
ENGINE_READY = Gauge("kimi_engine_ready", "1 while the engine takes recordings, else 0.")
DECODE_WORKERS_BUSY = Gauge("kimi_decode_workers_busy", "Decoder processes at work.")
