"""The public port as the role that has it serves it: with TLS, and plain HTTP sent there.

A renewed certificate is taken by another server on the same address, which begins before the one
with the old certificate ends. Requests that are under way with the old one are answered; a
connection that is just being made with it is closed before a request on it is taken.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.server.embed import Server

from headrace.control.clients import Proxies
from headrace.control.hosts import Hosts, hosts_of
from headrace.model.clock import Clock
from headrace.model.deployment import HttpSettings
from headrace.model.errors import Invalid

PLAIN = HttpSettings()

LOOK_EVERY_S = 2.0
"""How often the files of certificate and key are looked at."""
_OVERLAP_S = 1.0
"""How long both servers take connections: the new one begins within some milliseconds."""
_HTTPS_PORT = 443
PATH_SAFE = "/:@!$&'()*+,;=~-._"
"""What a path holds unquoted (RFC 3986, 3.3)."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(:\d{1,5})?")

_logger = logging.getLogger(__name__)


class PublicPort:
    """The servers of the public address; to its owner like the one server that it mostly is."""

    def __init__(
        self,
        application: object,
        settings: Mapping[str, Any],
        http: HttpSettings,
        host: str,
        port: int,
        clock: Clock,
    ) -> None:
        """Serve `application`, whose server gets Granian's `settings`, as `http` says."""
        self._http = http
        self._clock = clock
        self._stopping = asyncio.Event()
        self._make = partial(
            Server,
            application,
            address=host,
            port=port,
            websockets=False,
            log_enabled=False,
            **settings,
            **_tls(http),
        )
        # Made at once, so that what is wrong with its settings is the caller's to hear.
        self._first = self._make()
        self._redirect = _redirect(http, host, port) if http.redirect_port else None

    async def serve(self) -> None:
        """Serve until told to stop, then until what is under way is answered."""
        if self._redirect is None:
            await self._serve_renewed()
            return
        redirecting = asyncio.create_task(self._redirect.serve())
        try:
            await self._serve_renewed()
        finally:
            self._redirect.stop()
            await redirecting

    def stop(self) -> None:
        """Take no more connections."""
        self._stopping.set()
        if self._redirect is not None:
            self._redirect.stop()

    async def _serve_renewed(self) -> None:
        server, serving = self._first, asyncio.create_task(self._first.serve())
        stopping = asyncio.create_task(self._stopping.wait())
        retired: list[asyncio.Task[None]] = []
        look_every_s = LOOK_EVERY_S if self._http.is_tls else None
        stamp = self._stamp()
        while not (stopping.done() or serving.done()):
            await asyncio.wait(
                {serving, stopping}, timeout=look_every_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._stamp() == stamp:
                continue
            stamp = self._stamp()
            if (renewed := self._renewed()) is None:
                continue
            _logger.info("Taking the renewed certificate %s", self._http.tls_cert)
            retired.append(serving)
            old, server, serving = server, renewed, asyncio.create_task(renewed.serve())
            await asyncio.wait({serving, stopping}, timeout=_OVERLAP_S)
            old.stop()
        stopping.cancel()
        server.stop()
        await asyncio.gather(*retired, return_exceptions=True)
        await serving

    def _renewed(self) -> Server | None:
        """Return a server with the files as they are now; None if they are no pair, as halfway."""
        # Loaded where it is needed: the library behind it takes 8 MB.
        certificate = importlib.import_module("headrace.control.certificate")
        try:
            certificate.check(
                Path(self._http.tls_cert), Path(self._http.tls_key), self._clock.now_us()
            )
        except Invalid as refused:
            _logger.warning("The changed certificate is not taken: %s", refused)
            return None
        return self._make()

    def _stamp(self) -> list[tuple[int, ...]]:
        """Return what changes with certificate or key."""
        if not self._http.is_tls:
            return []
        stats: list[tuple[int, ...]] = []
        for path in (self._http.tls_cert, self._http.tls_key):
            try:
                found = Path(path).stat()
            except OSError:
                stats.append((0,))
            else:
                stats.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return stats


class Reached(NamedTuple):
    """How the public port is reached, and what therefore holds for every request at it."""

    http: HttpSettings = PLAIN
    proxies: Proxies | None = None
    """Who is believed about clients; None: nobody."""
    hosts: Hosts | None = None
    """By which names readers may ask; None: by any."""
    headers: tuple[tuple[str, str], ...] = ()
    """What every answer says."""


def reached(http: HttpSettings, bound: str, *, tokens: bool) -> Reached:
    """Return what holds at a port; `bound` is the address that is listened on."""
    return Reached(
        http,
        Proxies(http.trusted_proxies) if http.trusted_proxies else None,
        hosts_of(bound, http.host_names, tokens=tokens),
        tuple(strict_transport(http)),
    )


def strict_transport(http: HttpSettings) -> list[tuple[str, str]]:
    """Return the header that has browsers ask by https alone, if that is wanted."""
    if not (http.is_tls and http.hsts_s):
        return []
    return [("strict-transport-security", f"max-age={http.hsts_s}")]


def https_address(host: str | None, path: str, query: str, port: int) -> str | None:
    """Return the address of the same thing by https; None if the request does not say of whom.

    `path` is percent-decoded, `port` that of TLS.
    """
    found = _HOST.fullmatch(host or "")
    if found is None:
        return None
    shown = "" if port == _HTTPS_PORT else f":{port}"
    asked = f"?{query}" if query else ""
    return f"https://{found[1]}{shown}{quote(path, safe=PATH_SAFE)}{asked}"


class Redirect:
    """Answers every request with the address of the same thing by https (RSGI)."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - native objects
        """Answer one request; its body is not read."""
        to = https_address(scope.headers.get("host"), scope.path, scope.query_string, self._port)
        if to is not None:
            protocol.response_empty(308, [("location", to), ("connection", "close")])
            return
        told = {
            "code": "no_host",
            "message": "The request does not say whose address it asks",
            "hint": "Ask by https.",
        }
        headers = [("content-type", "application/json"), ("connection", "close")]
        protocol.response_bytes(400, headers, msgspec.json.encode({"error": told}))


def _tls(http: HttpSettings) -> dict[str, Any]:
    if not http.is_tls:
        return {}
    return {
        "ssl_cert": Path(http.tls_cert),
        "ssl_key": Path(http.tls_key),
        "ssl_protocol_min": SSLProtocols.tls12,
    }


def _redirect(http: HttpSettings, host: str, port: int) -> Server:
    return Server(
        Redirect(port),
        address=host,
        port=http.redirect_port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
