"""Free ports of this machine's own address, which is all that trials listen on."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

HOST = "127.0.0.1"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; held together, so that all are different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def addresses(ports: Sequence[int]) -> str:
    """Return `host:port,…`, as Kafka's clients want it."""
    return ",".join(f"{HOST}:{port}" for port in ports)
