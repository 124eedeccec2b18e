"""Requests a second, latency and memory of this service and of vLLM's own transcription server, in one run.

    python -m benchmarks.serving [--seconds 5] [--tokens 32] [--requests 48]

Both serve the same random checkpoint in the release's vocabulary, whose text never ends by itself, so that every answer
has ``--tokens`` tokens. All clips have one length: vLLM's own class cannot take two lengths in one step. Prints a
Markdown table; the ratio is this service's figure to vLLM's.
"""

import argparse
import asyncio
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import psutil
import soundfile
from safetensors.torch import load_file, save_file

from deploy.serve import free_port
from tests.model import checkpoints

RELEASE_VOCABULARY = replace(
    checkpoints.ASCII, text_pieces=151_643, special_tokens=421, codes=16_384, hidden=256, layers=4, heads=4, kv_heads=2,
    whisper_dim=384, whisper_layers=4, speech_dim=128, speech_layers=4, pooling_position=2, main_files=1,
)  # fmt: skip
CONCURRENCY = (1, 4, 16)
START_SECONDS = 300.0


@dataclass(frozen=True)
class Server:
    """How a server is started and asked."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    ready: str
    transcribe: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Figures:
    """What was measured of one server: requests a second and median seconds by concurrency, resident bytes."""

    start: float
    rate: dict[int, float]
    latency: dict[int, float]
    memory: int


def main() -> None:
    """Measure both servers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each clip")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--requests", type=int, default=48, help="requests for each concurrency")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kimi-bench-") as folder:
        checkpoint = endless_checkpoint(Path(folder) / "checkpoint")
        clips = [clip(seed, arguments.seconds) for seed in range(arguments.requests)]
        figures = {server.name: asyncio.run(measure(server, clips)) for server in servers(checkpoint, arguments.tokens)}
    print(
        f"{arguments.requests} clips of {arguments.seconds:g} s, {arguments.tokens} tokens each, {os.cpu_count()} CPUs"
    )
    print(table(figures))


def endless_checkpoint(directory: Path) -> Path:
    """A random checkpoint whose text never ends, with the remote code that vLLM's own class needs."""
    checkpoints.write(directory, RELEASE_VOCABULARY)
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"][RELEASE_VOCABULARY.text_end] = 0
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "configuration_moonshot_kimia.py").write_text(
        "from transformers import Qwen2Config\n\n\nclass KimiAudioConfig(Qwen2Config):\n    model_type = 'kimi_audio'\n"
    )
    return directory


def servers(checkpoint: Path, tokens: int) -> Iterator[Server]:
    """This service and vLLM's own, which finds its own class because no plug-in is loaded."""
    port = free_port()
    yield Server(
        "this service",
        [sys.executable, "-m", "app"],
        {"KIMI_MODEL": str(checkpoint), "KIMI_PORT": str(port), "KIMI_MAX_MODEL_LEN": "2048"},
        f"http://127.0.0.1:{port}/health/ready",
        f"http://127.0.0.1:{port}/transcribe",
        {"max_tokens": str(tokens)},
    )
    port = free_port()
    yield Server(
        "vLLM's server",
        [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
            *("--trust-remote-code", "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "32"),
            *("--port", str(port), "--host", "127.0.0.1"),
        ],
        {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1"},
        f"http://127.0.0.1:{port}/health",
        f"http://127.0.0.1:{port}/v1/audio/transcriptions",
        {"max_completion_tokens": str(tokens), "model": str(checkpoint)},
    )


async def measure(server: Server, clips: list[bytes]) -> Figures:
    """Start ``server``, send ``clips`` at each concurrency, stop it."""
    started = time.monotonic()
    with process(server) as running:
        async with httpx.AsyncClient(timeout=START_SECONDS, trust_env=False) as client:
            await until_ready(client, server, running)
            start = time.monotonic() - started
            await ask(client, server, clips[0])
            rate, latency = {}, {}
            for concurrency in CONCURRENCY:
                began = time.monotonic()
                gate = asyncio.Semaphore(concurrency)
                seconds = await asyncio.gather(*(ask(client, server, clip, gate) for clip in clips))
                rate[concurrency] = len(clips) / (time.monotonic() - began)
                latency[concurrency] = median(seconds)
            tree = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
            return Figures(start, rate, latency, sum(member.memory_info().rss for member in tree))


@contextlib.contextmanager
def process(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """``server`` running, its log in a file that is shown when it fails."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(
            server.command, env={**os.environ, **server.environment}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield running
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            running.terminate()
            running.wait(60)


async def until_ready(client: httpx.AsyncClient, server: Server, running: subprocess.Popen[bytes]) -> None:
    """Return when ``server`` says that it is ready; raises RuntimeError when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if (await client.get(server.ready)).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.25)
    raise RuntimeError(f"{server.name} does not get ready")


async def ask(
    client: httpx.AsyncClient, server: Server, recording: bytes, gate: asyncio.Semaphore | None = None
) -> float:
    """Seconds that one transcription takes; raises where it is refused."""
    async with gate or contextlib.nullcontext():
        began = time.monotonic()
        answer = await client.post(server.transcribe, data=dict(server.fields), files={"file": ("a.wav", recording)})
        answer.raise_for_status()
        return time.monotonic() - began


def clip(seed: int, seconds: float) -> bytes:
    """A WAV file of noise that swells and fades."""
    noise = np.random.default_rng(seed)
    samples = noise.normal(0, 0.1, int(16_000 * seconds)) * np.sin(np.linspace(0, 20, int(16_000 * seconds))) ** 2
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def table(figures: Mapping[str, Figures]) -> str:
    """Markdown: a row a figure, a column a server, and the ratio."""
    ours, theirs = figures.values()
    rows = [("start, s", ours.start, theirs.start)]
    rows += [(f"requests/s, {n} at a time", ours.rate[n], theirs.rate[n]) for n in CONCURRENCY]
    rows += [(f"median s, {n} at a time", ours.latency[n], theirs.latency[n]) for n in CONCURRENCY]
    rows += [("resident, GiB", ours.memory / 2**30, theirs.memory / 2**30)]
    lines = [f"| | {' | '.join(figures)} | ratio |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(lines + [f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} |" for name, a, b in rows])


if __name__ == "__main__":
    main()
