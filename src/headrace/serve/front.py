"""What a collector does before the application, where there is none between it and clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from headrace.control.admission import OPEN_PATH
from headrace.control.clients import host_of
from headrace.control.public_port import Reached
from headrace.model.errors import Invalid
from headrace.serve.errors import error_response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """An ASGI application before another: who asks, and by which name."""

    def __init__(self, application: Application, reached: Reached) -> None:
        self._application = application
        self._reached = reached
        self._more = [(name.encode(), value.encode()) for name, value in reached.headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the client that a trusted proxy names; 421 by a strange name."""
        proxies, hosts = self._reached.proxies, self._reached.hosts
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        if proxies is not None:
            address, port = scope["client"]
            peer = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            client = proxies.client(peer, scope["scheme"], headers)
            scope |= {"client": (host_of(client.address), 0), "scheme": client.scheme}

        async def answer(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._more]
            await send(message)

        try:
            if hosts is not None and scope["path"] != OPEN_PATH:
                hosts.check(next((v for n, v in headers if n == "host"), None))
        except Invalid as refused:
            await error_response(refused)(scope, receive, answer)
            return
        await self._application(scope, receive, answer)
