"""Where an SQL worker begins: `python -m headrace.serve.sql.process SETTINGS`.

It gives up what it does not need before it loads a library: some start threads at once, and a
process with threads may not leave the network.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys

from headrace.serve.sql.confine import confine


def main() -> None:
    """Be a worker; the settings are `Workers`', as JSON."""
    settings = json.loads(sys.argv[1])
    confine(settings["memory_bytes"], settings["parent"])
    with socket.socket(fileno=settings["fd"]) as connection:
        worker = importlib.import_module("headrace.serve.sql.worker").Worker
        worker(connection, settings["threads"], settings["memory_bytes"]).run()


if __name__ == "__main__":
    main()
