"""``python -m app``: serve, as the ``KIMI_*`` environment variables say.

Exit status: 0 after SIGTERM or SIGINT, 1 when the model cannot be served or the engine has died, 2 for a wrong setting.
"""

import multiprocessing
import os
import sys


def main() -> int:
    """Serve until stopped; returns the exit status."""
    # Imported here because every decoder and engine process imports this module again.
    from app import logs
    from app.settings import SettingsError, load

    try:
        settings = load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log_level)

    from app.server import Server

    return Server(settings).serve_until_stopped()


if __name__ == "__main__":
    status = main()
    for child in multiprocessing.active_children():
        child.kill()  # an engine that is still loading, when the service is stopped that early, heeds nothing else
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is stopped; unloading torch and vLLM module by module takes another 10 to 30 s
