"""Free ports of this machine's own address, which is all that trials listen on."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from headrace.model.errors import Unavailable

HOST = "127.0.0.1"
FIRST, LAST = 20_000, 32_000
"""Below the ports that Linux (from 32,768) and macOS (from 49,152) give to connections."""

# Processes that begin one after another look far apart: multiples of the golden ratio do.
_places = itertools.count(os.getpid() * 7_416)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, none of them twice in one process.

    A port that the system gives to whoever asks for any, it may give to somebody else's connection
    before its finder listens there, or while a broker starts again.

    `Unavailable` if too many are taken.
    """
    ports: list[int] = []
    for place in itertools.islice(_places, LAST - FIRST):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, FIRST + place % (LAST - FIRST)))
            ports.append(probe.getsockname()[1])
        if len(ports) == count:
            return ports
    raise Unavailable(
        f"Fewer than {count} ports of {FIRST} to {LAST} are free",
        hint="Name one, or stop what listens there.",
        code="no_free_port",
    )


def addresses(ports: Sequence[int]) -> str:
    """Return `host:port,…`, as Kafka's clients want it."""
    return ",".join(f"{HOST}:{port}" for port in ports)
