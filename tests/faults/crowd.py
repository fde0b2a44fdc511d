"""Many connections that send without a pause, in a process of their own; it numbers nothing.

`python crowd.py PORT SECONDS CONNECTIONS PATH EVENTS BYTES`: each connection posts the same NDJSON
body of so many events, each longer by so many bytes, and again as soon as it is answered. At the
end it prints JSON: how often each status was answered, and how many of the refusals did not say
when to come again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import uvloop
from live import event

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/x-ndjson\r\n"
    "Content-Length: {length}\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """Sends a request, and the next one when an answer has come."""

    def __init__(self, request: bytes, answers: Counter[str]) -> None:
        self._request = request
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower().split(b"\r\n")
        length = next(int(f[15:]) for f in fields if f.startswith(b"content-length:"))
        if len(body) < length:
            return
        self._received = b""
        status = fields[0].split()[1].decode()
        self._answers[status] += 1
        if status == "503" and not any(f.startswith(b"retry-after: ") for f in fields):
            self._answers["without retry-after"] += 1
        self._transport.write(self._request)


async def send(port: int, seconds: float, connections: int, request: bytes) -> Counter[str]:
    """Send over all connections for so long; return the answers by status."""
    answers: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(request, answers), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in made:
        transport.abort()
    return answers


def main() -> None:
    port, seconds, connections, path, events, size = sys.argv[1:]
    line = event(1, f',"pad":"{"x" * int(size)}"')
    body = "\n".join([line] * int(events)).encode()
    request = HEAD.format(path=path, length=len(body)).encode() + body
    answers = uvloop.run(send(int(port), float(seconds), int(connections), request))
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
