"""Everything that is not the collector's, handed to the `serve` role over its Unix socket.

The server underneath takes whatever it is given for an answer without ever saying "wait", so a
slow client would pile a large answer up in memory. Hence three ways: small answers are held, large
ones go through a file that the server reads at the client's pace, and event streams, which are
slow by nature, are passed on as they come up to a bound.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx2

from headrace.collect.exchange import Headers, Request, Response, refusal
from headrace.collect.limits import Limits
from headrace.model.errors import Unavailable

_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""RFC 9110, 7.6.1: they concern one connection and are not passed on."""
_PATH_SAFE = "/:@!$&'()*+,;=~-._"
_EVENT_STREAM = "text/event-stream"
_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 120.0
_SPOOL_KEPT_S = 30.0
"""A file is opened within milliseconds of being answered with; after this its name goes."""

_logger = logging.getLogger(__name__)


class Bridge:
    """Passes requests on. Used on one event loop; `Outgoing` is an RSGI protocol."""

    def __init__(
        self, upstream: Path, spool: Path, limits: Limits, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Pass on to the socket `upstream`; large answers go through files in `spool`.

        `headers` are added to what comes back.
        """
        self._limits = limits
        self._headers = headers
        self._spool = spool
        self._streams = 0
        """Event streams that are passed on now."""
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=str(upstream),
                limits=httpx2.Limits(
                    max_connections=limits.bridge_connections_max, max_keepalive_connections=32
                ),
            ),
            timeout=httpx2.Timeout(
                _ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S, pool=_CONNECT_TIMEOUT_S
            ),
        )

    async def close(self) -> None:
        """Close every connection; streams that are open end."""
        await self._client.aclose()

    async def forward(self, request: Request, scheme: str, client: str, outgoing: Any) -> int:  # noqa: ANN401
        """Answer `outgoing` with what the other role says; return the status."""
        body = await request.read()
        asked = self._client.build_request(
            request.method,
            # Whole: else httpx2 takes what stands behind two slashes at the beginning for a host.
            f"http://serve{_target(request)}",
            content=body,
            headers=_request_headers(request.headers, scheme, client),
        )
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx2.PoolTimeout:
            return _send(outgoing, refusal(_busy()))
        except (httpx2.TransportError, OSError) as error:
            return _send(outgoing, refusal(_absent(error)))
        try:
            return await self._pass_back(request.method, answer, outgoing)
        finally:
            await answer.aclose()

    async def _pass_back(self, method: str, answer: httpx2.Response, outgoing: Any) -> int:  # noqa: ANN401
        headers = [*_answer_headers(answer), *self._headers]
        if answer.headers.get("content-type", "").startswith(_EVENT_STREAM) and method != "HEAD":
            if self._streams >= self._limits.bridge_streams_max:
                return _send(outgoing, refusal(_too_many_listen()))
            self._streams += 1
            try:
                await self._stream(answer, headers, outgoing)
            finally:
                self._streams -= 1
            return answer.status_code
        held = bytearray()
        try:
            chunks = answer.aiter_raw()
            async for chunk in chunks:
                held += chunk
                if len(held) > self._limits.bridge_held_bytes_max:
                    path = await self._to_file(held, chunks)
                    outgoing.response_file(answer.status_code, headers, str(path))
                    return answer.status_code
        except (httpx2.TransportError, OSError) as error:
            return _send(outgoing, refusal(_absent(error)))
        return _send(outgoing, Response(answer.status_code, headers, bytes(held)))

    async def _to_file(self, held: bytearray, chunks: Any) -> Path:  # noqa: ANN401
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(None, self._new_file)
        path = Path(file.name)
        remove = _unlink(path)
        try:
            with file:
                file.write(held)
                async for chunk in chunks:
                    await loop.run_in_executor(None, file.write, chunk)
        except BaseException:
            remove()
            raise
        loop.call_later(_SPOOL_KEPT_S, remove)
        return path

    def _new_file(self) -> IO[bytes]:
        return tempfile.NamedTemporaryFile(dir=self._spool, delete=False)

    async def _stream(
        self,
        answer: httpx2.Response,
        headers: list[tuple[str, str]],
        outgoing: Any,  # noqa: ANN401
    ) -> None:
        transport = outgoing.response_stream(answer.status_code, headers)
        passing = asyncio.ensure_future(self._pass_events(answer, transport))
        leaving = asyncio.ensure_future(_client_leaves(outgoing))
        await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (passing, leaving):
            task.cancel()
        await asyncio.gather(passing, leaving, return_exceptions=True)

    async def _pass_events(self, answer: httpx2.Response, transport: Any) -> None:  # noqa: ANN401
        passed = 0
        async for chunk in answer.aiter_raw():
            await transport.send_bytes(chunk)
            passed += len(chunk)
            if passed > self._limits.bridge_stream_bytes_max:
                return


async def _client_leaves(outgoing: Any) -> None:  # noqa: ANN401
    await outgoing.client_disconnect()


def _unlink(path: Path) -> Callable[[], None]:
    return lambda: path.unlink(missing_ok=True)


def _send(outgoing: Any, response: Response) -> int:  # noqa: ANN401
    outgoing.response_bytes(response.status, response.headers, response.body)
    return response.status


def _target(request: Request) -> str:
    path = quote(request.path, safe=_PATH_SAFE)
    return f"{path}?{request.query}" if request.query else path


def _request_headers(headers: Headers, scheme: str, client: str) -> list[tuple[str, str]]:
    named = {n.strip().lower() for n in (headers.get("connection") or "").split(",")}
    dropped = _HOP_BY_HOP | named | {"content-length", "x-forwarded-proto", "x-forwarded-for"}
    passed = [(name, value) for name, value in headers.items() if name not in dropped]
    # No one but the collector reaches the socket, so what stands here is what it saw itself.
    return [*passed, ("x-forwarded-proto", scheme), ("x-forwarded-for", client.rpartition(":")[0])]


def _answer_headers(answer: httpx2.Response) -> list[tuple[str, str]]:
    return [
        (name.lower(), value)
        for name, value in answer.headers.multi_items()
        if name.lower() not in _HOP_BY_HOP
    ]


def _too_many_listen() -> Unavailable:
    return Unavailable(
        "Too many listen already",
        hint="Ask for the view itself instead, now and then.",
        code="too_many_listeners",
    )


def _busy() -> Unavailable:
    return Unavailable(
        "Too many requests are under way already",
        hint="Records are still taken. Ask again after the seconds in Retry-After.",
        code="too_busy",
    )


def _absent(error: Exception) -> Unavailable:
    _logger.info("The serve role did not answer: %s", type(error).__name__)
    return Unavailable(
        "The serve role is not running",
        hint="Records are still taken. Start it with `headrace run`, or look at `headrace status`.",
        code="serve_unavailable",
    )
