"""Asking a service over HTTP, politely: what every source that follows an API goes through.

A `Network` is what the sources of a process share: to each host there is one request at a time,
and a host that asked to wait is left alone by all of them. A `Service` is one source's way to one
API: it paces, bounds what it takes in, says who is asking, and turns what goes wrong into the kind
of error that says what to do next.

=====================================================  ============================================
answer                                                 outcome
=====================================================  ============================================
2xx, 304                                               an `Answer`
420, 429, 503                                          `Unavailable`, after what Retry-After says
408, other 5xx, time-out, no connection, cut off,      `Unavailable`: worth asking again
and, when it is decoded, HTML or broken JSON
other 4xx, 3xx that leads nowhere, too large           `Invalid`, with the service's own words
=====================================================  ============================================

Nothing is asked twice here: `pull` opens the source again at its last durable cursor, after a
back-off with jitter, and the source asks from there.
"""

from __future__ import annotations

import importlib.metadata
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx2
import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Closed, HeadraceError, Invalid, Unavailable
from headrace.sources.addresses import follow, guarded_client

ANSWER_BYTES_MAX = 256 << 20
"""Largest body that is taken into memory; ten thousand of the largest records are a tenth of it."""
FILE_BYTES_MAX = 1 << 40
"""Largest file that is downloaded."""
WORDS_MAX = 300
"""How many characters of a service's own words stand in a message."""
WORDS_BYTES_MAX = 64 << 10
"""How much is read of the body that says why a request failed."""
RETRY_AFTER_S_MAX = 3600.0
"""A service that asks to wait longer is asked again after this long: most likely it meant less."""
RETRY_AFTER_S = 10.0
"""How long to wait if a service asks to wait and does not say how long."""
CONNECT_S_MAX = 30.0
"""Time-out of making a connection, unless a source's own is shorter."""
STEPS_MAX = 20
"""An answer may take this many times the time-out in all, however steadily its bytes come."""

_LOOK_S = 0.05
_CHUNK_BYTES = 64 << 10
_TOO_MANY_DOWNLOADS = 420
"""GBIF's own: as many downloads are being made for us as may be; other requests are welcome."""
_WAITS = (_TOO_MANY_DOWNLOADS, 429, 503)
_OK_MIN, _OK_MAX = 200, 299
_NOT_MODIFIED, _TIMED_OUT, _SERVERS_FAULT = 304, 408, 500
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_WORD_MEMBERS = ("message", "error", "detail", "title")

Params = Mapping[str, str | int | float | bool | list[str]]
Decoded = TypeVar("Decoded")


class _Host:
    """What is known of a host: whether it is being asked, and when it may be asked again."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.asked_s: float | None = None
        """When it was last asked, monotonic."""
        self.waits_until_s: float | None = None
        """Until when it asked to be left alone, monotonic."""


class Network:
    """What all sources of a process share, connections included; for use from many threads."""

    def __init__(self, clock: Clock, *, private: bool = False) -> None:
        """Let sources ask private addresses too if `private`."""
        self.clock = clock
        self.client = guarded_client(private, CONNECT_S_MAX)
        self._hosts: dict[str, _Host] = {}
        self._finding = threading.Lock()

    def close(self) -> None:
        """Give connections back; what is being asked fails."""
        self.client.close()

    def host(self, name: str) -> _Host:
        """Return what is known of a host and port."""
        with self._finding:
            return self._hosts.setdefault(name, _Host())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered, whole."""

    url: str
    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    asked_at_us: int
    """When it was asked, microseconds since 1970: what the answer says was true after it."""

    @property
    def not_modified(self) -> bool:
        """Whether a conditional request found nothing new."""
        return self.status == _NOT_MODIFIED

    def read(self, decoder: msgspec.json.Decoder[Decoded]) -> Decoded:
        """Return the body as JSON; `Unavailable` if it is none, or none of that shape.

        Services answer with a page of HTML or half a document while something before them is
        ailing, so that is worth asking again.
        """
        try:
            return decoder.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = "HTML" if _is_html(self.body) else "something that cannot be read"
            reason = "" if what == "HTML" else f": {error}"
            msg = f"{_place(self.url)} answered {self.status} with {what}{reason}"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="unreadable_answer") from error


class Service:
    """One source's way to one API; for use from one thread.

    `url` is what every path is behind, `contact` whom its operators can write to. Asking ends with
    `Closed` soon after the event `closed` is set.
    """

    def __init__(
        self,
        network: Network,
        url: str,
        *,
        contact: str,
        closed: threading.Event,
        timeout_s: float,
        requests_per_s: float,
    ) -> None:
        self._clock = network.clock
        self._url = url.rstrip("/")
        self._closed = closed
        self._timeout_s = timeout_s
        self._gap_s = 1.0 / requests_per_s
        self._host = network.host(_host_of(url))
        self._client = network.client
        self._said = {
            "accept": "application/json",
            "accept-encoding": "gzip",
            "user-agent": user_agent(contact),
        }

    def get(
        self,
        path: str,
        params: Params | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask for what is at a path; a relative path, or a whole URL for one that a service named.

        A 304, after conditional headers, is an answer. Raises as the module's table says.
        """
        return self._ask(self._request("GET", path, params, headers, None), self._whole)

    def post(
        self,
        path: str,
        body: object,
        params: Params | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send `body` as JSON; raises as `get`."""
        sent = msgspec.json.encode(body)
        typed = {"content-type": "application/json", **(headers or {})}
        return self._ask(self._request("POST", path, params, typed, sent), self._whole)

    def download(
        self,
        path: str,
        to: Path,
        params: Params | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        bytes_max: int = FILE_BYTES_MAX,
    ) -> Answer:
        """Write what is at a path into the file `to`; the answer's body is empty. Raises as `get`.

        After an error the file holds what had come; that it is whole is for the caller to check
        where its format tells.
        """

        def into_file(response: httpx2.Response, asked_at_us: int) -> Answer:
            with to.open("wb") as file:
                for chunk in self._chunks(response, bytes_max):
                    file.write(chunk)
            return _answer(response, b"", asked_at_us)

        return self._ask(self._request("GET", path, params, headers, None), into_file)

    def stream(
        self,
        path: str,
        begun: Callable[[Answer], None],
        take: Callable[[bytes], None],
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hand on a body that may have no end, as it comes; return when it has ended by itself.

        `begun` gets the answer without its body first. Runs on the thread that calls it, which
        nothing wakes while it waits for bytes, for up to the time-out. The host's turn is given
        back once it has answered. Raises as `get`, and what `begun` and `take` raise.
        """
        plain = {"accept": "*/*", "accept-encoding": "identity", **(headers or {})}
        request = self._request("GET", path, params, plain, None)
        self._wait_for_turn()
        with self._meaning(request):
            try:
                self._pace(request)
                asked_at_us = self._clock.now_us()
                response = follow(self._client, request)
            finally:
                self._host.turn.release()
            try:
                if not _OK_MIN <= response.status_code <= _OK_MAX:
                    raise self._refusal(response)
                begun(_answer(response, b"", asked_at_us))
                for chunk in response.iter_bytes():
                    if self._closed.is_set():
                        raise Closed("The source is closed")
                    take(chunk)
            finally:
                response.close()

    def _request(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Mapping[str, str] | None,
        content: bytes | None,
    ) -> httpx2.Request:
        url = path if "://" in path else f"{self._url}/{path.lstrip('/')}"
        try:
            return self._client.build_request(
                method,
                url,
                params=dict(params) if params else None,
                headers=self._said | dict(headers or {}),
                content=content,
                timeout=httpx2.Timeout(
                    self._timeout_s, connect=min(self._timeout_s, CONNECT_S_MAX)
                ),
            )
        except (httpx2.InvalidURL, UnicodeError) as error:
            msg = f"{url} cannot be asked: {error}"
            raise Invalid(msg, hint="correct the url", code="invalid_url") from error

    def _ask(
        self, request: httpx2.Request, take: Callable[[httpx2.Response, int], Answer]
    ) -> Answer:
        """Wait for the host's turn and pace, and ask in a thread that closing need not wait for.

        A thread, because nothing wakes one that waits for a socket; left alone, it ends at the
        time-out at the latest, and until then the host is not asked by anyone else.
        """
        self._wait_for_turn()
        asking = _Asking(lambda: self._send(request, take), self._host.turn.release)
        try:
            self._pace(request)
        except BaseException:
            self._host.turn.release()
            raise
        asking.start()
        return asking.outcome(self._closed)

    def _wait_for_turn(self) -> None:
        if self._closed.is_set():
            raise Closed("The source is closed")
        while not self._host.turn.acquire(timeout=_LOOK_S):
            if self._closed.is_set():
                raise Closed("The source is closed")

    def _pace(self, request: httpx2.Request) -> None:
        """Return when the host may be asked; `Unavailable` if it asked for more than a pause."""
        now_s = self._clock.monotonic_s()
        until_s = self._host.waits_until_s
        if until_s is not None and until_s > now_s:
            msg = f"{request.url.host} has asked to wait"
            wait_s = until_s - now_s
            raise Unavailable(msg, hint=_ASK_AGAIN, code="asked_to_wait", retry_after_s=wait_s)
        if self._host.asked_s is not None:
            wait_s = self._host.asked_s + self._gap_s - now_s
            if wait_s > 0 and self._clock.wait(self._closed, wait_s):
                raise Closed("The source is closed")
        self._host.asked_s = self._clock.monotonic_s()

    def _send(
        self, request: httpx2.Request, take: Callable[[httpx2.Response, int], Answer]
    ) -> Answer:
        asked_at_us = self._clock.now_us()
        with self._meaning(request):
            response = follow(self._client, request)
            try:
                if _OK_MIN <= response.status_code <= _OK_MAX:
                    return take(response, asked_at_us)
                if response.status_code == _NOT_MODIFIED:
                    return _answer(response, b"", asked_at_us)
                raise self._refusal(response)
            finally:
                response.close()

    @contextmanager
    def _meaning(self, request: httpx2.Request) -> Iterator[None]:
        """Turn what the client raises into the kind of error that says what to do next."""
        try:
            yield
        except httpx2.TimeoutException as error:
            msg = f"{_place(str(request.url))} did not answer within {self._timeout_s:g} s"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="timed_out") from error
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            msg = f"{_place(str(request.url))} could not be asked: {error}"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="not_reached") from error

    def _whole(self, response: httpx2.Response, asked_at_us: int) -> Answer:
        body = b"".join(self._chunks(response, ANSWER_BYTES_MAX))
        return _answer(response, body, asked_at_us)

    def _chunks(self, response: httpx2.Response, bytes_max: int) -> Iterator[bytes]:
        """Yield a body, decompressed, within its bounds of size and time."""
        ends_s = self._clock.monotonic_s() + STEPS_MAX * self._timeout_s
        size = 0
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            size += len(chunk)
            if size > bytes_max:
                msg = f"{_place(str(response.url))} answered more than {bytes_max} bytes"
                raise Invalid(msg, hint="ask for less: a smaller page_size", code="answer_too_big")
            if self._closed.is_set():
                raise Closed("The source is closed")
            if self._clock.monotonic_s() > ends_s:
                msg = f"{_place(str(response.url))} took too long to answer"
                raise Unavailable(msg, hint=_ASK_AGAIN, code="timed_out")
            yield chunk

    def _refusal(self, response: httpx2.Response) -> HeadraceError:
        """Return the error that an answer other than 2xx and 304 is."""
        status = response.status_code
        words = _words(self._some(response))
        msg = f"{_place(str(response.url))} answered {status}" + (f": {words}" if words else "")
        if status in _WAITS:
            wait_s = _retry_after_s(response.headers, self._clock)
            if status != _TOO_MANY_DOWNLOADS:
                self._host.waits_until_s = self._clock.monotonic_s() + wait_s
            return Unavailable(msg, hint=_ASK_AGAIN, code="asked_to_wait", retry_after_s=wait_s)
        if status >= _SERVERS_FAULT or status == _TIMED_OUT:
            return Unavailable(msg, hint=_ASK_AGAIN, code="service_failed")
        hint = "correct the source's url and filter by what the service says"
        return Invalid(msg, hint=hint, code="refused_by_service")

    def _some(self, response: httpx2.Response) -> bytes:
        body = b""
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            body += chunk
            if len(body) > WORDS_BYTES_MAX:
                break
        return body


class _Asking:
    """One request in a thread of its own."""

    def __init__(self, ask: Callable[[], Answer], done: Callable[[], None]) -> None:
        self._ask = ask
        self._done = done
        self._ended = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="request", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        self._done()
        self._ended.set()

    def outcome(self, closed: threading.Event) -> Answer:
        """Return what came of it; `Closed` soon after `closed` is set."""
        while not self._ended.wait(_LOOK_S):
            if closed.is_set():
                raise Closed("The source is closed")
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer


_ASK_AGAIN = "nothing needs to be done: it is asked again"


def user_agent(contact: str) -> str:
    """Return how requests name who is asking; services ask for a way to write to them."""
    name = f"headrace/{importlib.metadata.version('headrace')}"
    said = "".join(c for c in contact if c.isascii() and c.isprintable() and c not in "()")
    return f"{name} ({said})" if said else name


def _answer(response: httpx2.Response, body: bytes, asked_at_us: int) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(str(response.url), response.status_code, headers, body, asked_at_us)


def _retry_after_s(headers: httpx2.Headers, clock: Clock) -> float:
    """Return how long to wait by Retry-After, seconds or a date (RFC 9110, 10.2.3).

    A date is taken against the answer's own Date, because their clock need not be ours.
    """
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return min(float(said), RETRY_AFTER_S_MAX)
    until = _date(said)
    if until is None:
        return RETRY_AFTER_S
    now = _date(headers.get("date", "")) or datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_S_MAX)


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _words(body: bytes) -> str:
    """Return what an error's body says, on one line and not too long."""
    text = body.decode("utf-8", "replace")
    if _is_html(body):
        title = _TITLE.search(text)
        text = title[1] if title else "a page of HTML"
    elif text.lstrip().startswith("{"):
        text = _said_in(body) or text
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= WORDS_MAX else f"{shown[:WORDS_MAX]}…"


def _said_in(body: bytes) -> str | None:
    try:
        members = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for name in _WORD_MEMBERS:
        said = members.get(name)
        if isinstance(said, str) and said:
            rest = {k: v for k, v in members.items() if k in {"parameter", "terms"}}
            return f"{said} {msgspec.json.encode(rest).decode()}" if rest else said
    return None


def _is_html(body: bytes) -> bool:
    return body[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def _host_of(url: str) -> str:
    try:
        return httpx2.URL(url).netloc.decode("ascii")
    except httpx2.InvalidURL as error:
        msg = f"{url} is no URL: {error}"
        raise Invalid(
            msg, hint="for example https://api.obis.org/v3", code="invalid_url"
        ) from error


def _place(url: str) -> str:
    """Return a URL without its query, as messages name it."""
    return url.partition("?")[0]
