"""Start the service, say where it is, and stop it again.

``python deploy/serve.py``: keep it up until Ctrl-C, where the ``KIMI_*`` variables say.
``python deploy/serve.py RECORDING``: on a free port; transcribe RECORDING, print the answer and its words, stop.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import httpx

from app.settings import SettingsError, load

START_SECONDS: Final = 3600.0  # a first start of the 7B fetches 20 GB
REQUEST_SECONDS: Final = 600.0
STOP_SECONDS: Final = 60.0


class ServiceError(Exception):
    """The service did not start, or did not answer."""


@contextlib.contextmanager
def service(log: IO[bytes] | None, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m app``, writing to ``log`` (None: to the terminal); it is stopped at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app"],
        env={**os.environ, **settings},
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for this script, which then stops the service in good order
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(process: subprocess.Popen[bytes], address: str) -> float:
    """The seconds until the service was ready; raises :class:`ServiceError` when it ends before or takes too long."""
    started = time.monotonic()
    while (waited := time.monotonic() - started) < START_SECONDS:
        if process.poll() is not None:
            raise ServiceError(f"The service ended with status {process.returncode} before it was ready.")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health/ready").status_code == 200:
                return waited
        time.sleep(0.25)
    raise ServiceError(f"The service was not ready within {START_SECONDS:g} seconds.")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def keep_up() -> None:
    """Serve in the foreground."""
    settings = load()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{settings.port}"
    with service(log=None) as process:
        wait_until_ready(process, address)
        print(f"\nThe service is ready at {address}; Ctrl-C stops it. Try, in another terminal:\n")
        print(f"  curl -F file=@tests/data/demo.flac {address}/transcribe\n", flush=True)
        if status := process.wait():
            raise ServiceError(f"The service ended with status {status}.")


def demonstrate(recording: Path) -> None:
    """Serve for the length of one request."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            with service(log, KIMI_HOST="127.0.0.1", KIMI_PORT=str(port)) as process:
                print(f"Starting the service at {address}: the model is loaded, which takes a while.", flush=True)
                print(f"Ready after {wait_until_ready(process, address):.0f} seconds.\n")
                print(f"$ curl -F file=@{recording} {address}/transcribe", flush=True)
                with recording.open("rb") as file:
                    response = httpx.post(
                        f"{address}/transcribe", files={"file": (recording.name, file)}, timeout=REQUEST_SECONDS
                    )
                answer = response.json()
                print(json.dumps(answer, indent=2, ensure_ascii=False))
                if response.is_error:
                    raise ServiceError(answer["error"]["message"])
                print(f"\n{recording} says: {answer['text']}")
        except ServiceError:
            log.seek(0)
            print("\nThe service's log ends thus:\n", file=sys.stderr)
            sys.stderr.writelines(log.read().decode(errors="replace").splitlines(keepends=True)[-30:])
            raise


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background ignores it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        if arguments:
            recording = Path(arguments[0])
            if not recording.is_file():
                raise ServiceError(f"There is no file {recording}.")
            demonstrate(recording)
        else:
            keep_up()
    except KeyboardInterrupt:
        return 130 if arguments else 0
    except (ServiceError, SettingsError, httpx.HTTPError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
