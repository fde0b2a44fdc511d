"""What a stand-in can be told to do wrong, and for how long."""

from __future__ import annotations

import math
import threading
from typing import Literal

import msgspec

from headrace.model.clock import Clock
from headrace.testing.services.exchange import JSON, Reply
from headrace.testing.services.moments import http_date

Kind = Literal[
    "too_many_requests",
    "status",
    "html",
    "redirect",
    "error_in_200",
    "not_json",
    "truncated",
    "cut",
    "slow",
    "hang",
    "reset",
]
WORDS_429 = b'["Too many requests: please ask for bulk data as a download."]'
HTML = (
    b"<!DOCTYPE html><html><head><title>Maintenance</title></head>"
    b"<body><h1>We will be back soon</h1></body></html>"
)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that goes wrong, of which requests, for how many of them or how long.

    Without `requests` and `seconds` it happens once. `too_many_requests`: 429, with `Retry-After`
    if `retry_after_s` is given (a date where `as_date`). `status`: that status, likewise. `html`: a
    page of HTML with 200. `error_in_200`: an `error` array with 200. `redirect`: to `location`.
    `truncated`: the body ends before its Content-Length. `cut`: half of the JSON in a body that is
    whole. `not_json`: words that are no JSON. `slow`: the body at `bytes_per_s`. `hang`: nothing
    for `hold_s`. `reset`: the connection is reset.
    """

    kind: Kind
    service: str | None = None
    """gbif, obis or idigbio; None: all."""
    path: str = ""
    """Only requests whose path and query have these words in them."""
    after: int = 0
    """How many requests that it is for pass unharmed first."""
    requests: int | None = None
    seconds: float | None = None
    status: int = 500
    retry_after_s: float | None = None
    as_date: bool = False
    body: str | None = None
    """What the reply says instead of its usual words."""
    location: str = "http://169.254.169.254/latest/meta-data/"
    bytes_per_s: int = 2_000
    hold_s: float = 600.0


class Faults:
    """The faults that are on; asked once for each request."""

    def __init__(self, clock: Clock) -> None:
        """Begin with none."""
        self._clock = clock
        self._lock = threading.Lock()
        self._on: list[_On] = []

    def add(self, fault: Fault) -> None:
        """Turn a fault on; the first one that is for a request is what happens to it."""
        requests = fault.requests
        if requests is None and fault.seconds is None:
            requests = 1
        until_s = None if fault.seconds is None else self._clock.monotonic_s() + fault.seconds
        with self._lock:
            self._on.append(_On(fault, fault.after, requests, until_s))

    def clear(self) -> None:
        """Turn all faults off."""
        with self._lock:
            self._on.clear()

    def left(self) -> list[Fault]:
        """Return the faults that are still on."""
        with self._lock:
            self._drop_over()
            return [on.fault for on in self._on]

    def strike(self, service: str, target: str) -> Fault | None:
        """Return what goes wrong with a request for `target` (path and query), if anything."""
        with self._lock:
            self._drop_over()
            for on in self._on:
                if on.fault.service not in {None, service} or on.fault.path not in target:
                    continue
                if on.after:
                    on.after -= 1
                    continue
                if on.requests is not None:
                    on.requests -= 1
                return on.fault
        return None

    def _drop_over(self) -> None:
        now_s = self._clock.monotonic_s()
        self._on = [
            on for on in self._on if on.requests != 0 and (on.until_s is None or now_s < on.until_s)
        ]


class _On(msgspec.Struct):
    fault: Fault
    after: int
    requests: int | None
    until_s: float | None


def instead(fault: Fault, now_us: int) -> Reply | None:
    """Return the reply that stands in place of the right one; None if the right one is sent."""
    body = None if fault.body is None else fault.body.encode()
    match fault.kind:
        case "too_many_requests":
            return Reply(429, WORDS_429 if body is None else body, JSON, _wait(fault, now_us))
        case "status":
            words = b'{"message":"Internal Server Error"}' if body is None else body
            return Reply(fault.status, words, JSON, _wait(fault, now_us))
        case "html":
            return Reply(200, HTML if body is None else body, "text/html; charset=utf-8")
        case "not_json":
            return Reply(200, b"upstream request timeout" if body is None else body)
        case "error_in_200":
            return Reply(200, b'{"error":["Bad Request"]}' if body is None else body)
        case "redirect":
            return Reply(302, b"", "text/plain", {"Location": fault.location})
    return None


def _wait(fault: Fault, now_us: int) -> dict[str, str]:
    if fault.retry_after_s is None:
        return {}
    if fault.as_date:
        return {"Retry-After": http_date(now_us + round(fault.retry_after_s * 1_000_000))}
    return {"Retry-After": str(math.ceil(fault.retry_after_s))}
