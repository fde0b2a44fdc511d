"""The serve role as a process: `server_process.py DATA_DIR [HOST PORT]`."""

import signal
import sys
import threading
from pathlib import Path

import msgspec

from headrace.app.site import open_site
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.serve.run import run_serve


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    layout = Layout(Path(sys.argv[1]))
    plan = msgspec.json.decode(layout.plan.read_bytes(), type=Plan)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    host, port = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else (None, 0)
    run_serve(
        plan,
        open_site(layout, SystemClock()),
        SystemClock(),
        stop=stop,
        ready=lambda: say("ready"),
        host=host,
        port=port,
        beside=() if host else ("collect", "process"),
    )
    say("stopped")


if __name__ == "__main__":
    main()
