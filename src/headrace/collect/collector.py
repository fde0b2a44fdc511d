"""The HTTP door as a function: a request in, a response out, records in the log between.

Order of effects for a request that carries records:

1. The path names what it is for, the headers say that it may be: 401, 403, 404, 405, 415, 429.
2. The whole body has arrived, within its bounds: 408, 413, 503. This moment is `received_at`.
3. It is taken apart into records: 400.
4. Every record is judged and handed to the log, valid or not: 503.
5. The log says that they are durable. Only now the request is answered with 200
   (`?wait=false` answers 202 after 4).
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from headrace.collect.envelopes import (
    Form,
    Records,
    form_of,
    inflate,
    is_compressed,
    open_body,
)
from headrace.collect.exchange import (
    JSON,
    Handler,
    Headers,
    Request,
    Response,
    method_not_allowed,
    refusal,
    with_headers,
)
from headrace.collect.gate import Gate, OpenGate
from headrace.collect.groups import Groups, places
from headrace.collect.intake import Dead, Intake, Naming, naming_of
from headrace.collect.limits import Budget, Limits
from headrace.collect.metrics import DoorMetrics
from headrace.collect.readback import Readback
from headrace.collect.routes import CompiledRoute, find
from headrace.control.admission import OPEN_PATH, PAGES
from headrace.control.tokens import APPEND, READ
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Internal, Invalid
from headrace.model.log import Appended, Log, LogReader
from headrace.model.plan import Plan

TOPICS = "/v1/topics"
_MESSAGE_LENGTH_MAX = 300
_PATH_LENGTH_MAX = 100
_JUDGED_ELSEWHERE = {OPEN_PATH, "/"}
"""And all of the dashboard's: who is to sign in has no token yet."""
_WAIT = {"": True, "true": True, "1": True, "false": False, "0": False}

_logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """A path of the door: the scope that it asks for, and by method who answers."""

    scope: str
    handlers: Mapping[str, Handler]

    @property
    def allowed(self) -> str:
        """Return the methods as `Allow` names them."""
        return ", ".join([*self.handlers, "OPTIONS"])


class Collector:
    """Answers the paths of the HTTP door. Used on one event loop.

    `gate` says who may do what; without it anyone may. `reader` opens a reading end for reading
    back; `on_lost` hears of an error after which nothing more may be acknowledged: the process has
    to end and recover from disk.
    """

    def __init__(
        self,
        plan: Plan,
        log: Log,
        clock: Clock,
        limits: Limits,
        *,
        gate: Gate | None = None,
        reader: Callable[[], AbstractContextManager[LogReader]] | None = None,
        on_lost: Callable[[HeadraceError], None] = lambda _: None,
    ) -> None:
        self.limits = limits
        self.budget = Budget(limits.in_flight_bytes_max)
        self.metrics = DoorMetrics([topic.name for topic in plan.topics])
        self.groups = Groups(log, clock, on_lost)
        self._clock = clock
        self._gate = gate or OpenGate()
        self._thread = ThreadPoolExecutor(1, "collect-large")
        self._intakes = {topic.name: Intake(topic) for topic in plan.topics}
        self._paths: dict[str, Place] = {}
        self._patterns: list[CompiledRoute] = []
        self._readback = Readback(reader or (lambda: nullcontext(log)), plan)
        self._paths[TOPICS] = _read_only(self._readback.topics)
        for name, intake in self._intakes.items():
            append = {"POST": partial(self._append, intake)}
            self._paths[f"{TOPICS}/{name}"] = Place(f"{APPEND}{name}", append)
            records = partial(self._readback.records, name)
            self._paths[f"{TOPICS}/{name}/records"] = _read_only(records)
        for name in plan.change_topics:
            # Only views append there.
            records = partial(self._readback.records, name)
            self._paths[f"{TOPICS}/{name}"] = Place(READ, {"POST": _of_changes})
            self._paths[f"{TOPICS}/{name}/records"] = _read_only(records)
        for route in map(CompiledRoute, plan.routes):
            if route.parameters:
                self._patterns.append(route)
            else:
                self._paths[route.route.path] = self._route(route, {})

    def close(self) -> None:
        """Release its threads; requests under way have ended before."""
        self._thread.shutdown()
        self._readback.close()

    async def respond(self, request: Request) -> Response | None:
        """Return the answer to a request, or None if its path is not one of the door's."""
        place = self._paths.get(request.path) or self._find(request.path)
        if place is None:
            return None
        try:
            response = await self._answer(place, request)
        except HeadraceError as error:
            # Its frames hold the records and, through the group that awaits it, the error itself.
            response = refusal(error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - the door stays open whatever one request does
            response = refusal(unexpected(error))
        if request.headers.get("origin") is None:
            return response
        return self._readable(response, place, request)

    def identify(self, request: Request) -> None:
        """Raise unless a request that is for another role comes from a client that is known."""
        if request.path not in _JUDGED_ELSEWHERE and not request.path.startswith(PAGES):
            self._gate.admit(request, "")

    async def _answer(self, place: Place, request: Request) -> Response:
        if request.method == "OPTIONS":
            return self._options(place, request)
        client = self._gate.admit(request, place.scope)
        handler = place.handlers.get(request.method)
        if handler is None:
            return method_not_allowed(request.method, place.allowed)
        return await handler(request, client)

    def _options(self, place: Place, request: Request) -> Response:
        asked = self._gate.preflight(request, place.scope, place.allowed)
        if asked is not None:
            return asked
        self._gate.admit(request, place.scope)
        return Response(204, [("allow", place.allowed)])

    def _readable(self, response: Response, place: Place, request: Request) -> Response:
        """Let a page of another origin read an answer, if it may."""
        if "access-control-allow-origin" in dict(response.headers):
            return response
        try:
            return with_headers(response, *self._gate.cross_origin(request, place.scope))
        except HeadraceError:
            # The log cannot be read just now; the answer stands, only no page sees it.
            return response

    def _find(self, path: str) -> Place | None:
        found = find(self._patterns, path)
        if found is not None:
            return self._route(*found)
        if path.startswith(f"{TOPICS}/"):
            return Place("", {"GET": _no_topic, "POST": _no_topic})
        return None

    def _route(self, route: CompiledRoute, parameters: dict[str, str]) -> Place:
        topic = route.route.topic
        handler = partial(self._event, route, self._intakes[topic], parameters)
        handlers = {"GET": handler, "POST": handler, "HEAD": partial(_head, route)}
        return Place(f"{APPEND}{topic}", handlers)

    async def _event(
        self,
        route: CompiledRoute,
        intake: Intake,
        parameters: dict[str, str],
        request: Request,
        client: str,
    ) -> Response:
        naming = _naming(request, client)
        body = await self._object_body(request) if request.method == "POST" else b""
        value = route.event(parameters, body, request.headers)
        records = Records([value])
        dead = intake.judge(records)
        group = self.groups.group(intake.name, len(value))
        intake.add(records, dead, naming, self._clock.now_us(), group.batch)
        places(await group.done)
        self.metrics.count(intake.name, 1, len(dead))
        if dead:
            return with_headers(route.reply, ("x-headrace-dead", dead[0].fault.code))
        return route.reply

    async def _object_body(self, request: Request) -> bytes:
        headers = request.headers
        if headers.get("content-length", "0") == "0" and not headers.get("transfer-encoding"):
            return b""
        if form_of(headers.get("content-type")) != "json":
            raise Invalid(
                "A route takes one event",
                hint=f"Send a JSON object, or many records to POST {TOPICS}/{{topic}}.",
                code="unsupported_media_type",
            )
        compressed = is_compressed(headers.get("content-encoding"))
        body = await request.read()
        if compressed:
            body = inflate(body, self.limits.body_bytes_max)
            request.share.take(len(body))
        return body

    async def _append(self, intake: Intake, request: Request, client: str) -> Response:
        headers = request.headers
        naming = _naming(request, client)
        form = form_of(headers.get("content-type"))
        compressed = is_compressed(headers.get("content-encoding"))
        wait = _waits(request.query) if request.query else True
        body = await request.read()
        received_at = self._clock.now_us()
        if compressed or len(body) > self.limits.inline_bytes_max:
            prepare = partial(self._prepare, intake, form, body, headers, naming, received_at)
            loop = asyncio.get_running_loop()
            batch, dead = await loop.run_in_executor(self._thread, prepare, compressed)
            if compressed:
                # Only now it is known; one body at a time is beyond the budget, on the thread.
                request.share.take(batch.size_bytes)
            group = self.groups.group(intake.name, batch.size_bytes)
            first = len(group.batch)
            group.batch.extend(batch)
            del batch
        else:
            records = open_body(form, body, headers, self.limits.records_max)
            dead = intake.judge(records)
            group = self.groups.group(intake.name, len(body))
            first = len(group.batch)
            intake.add(records, dead, naming, received_at, group.batch)
            del records
        del body  # as in `Groups.flush`: it may wait for long
        n = len(group.batch) - first
        if wait:
            offsets = _offsets(places(await group.done), first, n)
        else:
            self.groups.flush(intake.name)
            if group.done.done():
                places(group.done.result())
            offsets = ""
        self.metrics.count(intake.name, n, len(dead))
        return self._told(n, dead, offsets)

    def _prepare(
        self,
        intake: Intake,
        form: Form,
        body: bytes,
        headers: Headers,
        naming: Naming,
        received_at: int,
        compressed: bool,  # noqa: FBT001 - `run_in_executor` passes no names
    ) -> tuple[Batch, list[Dead]]:
        """Make a batch of a body; runs on the thread."""
        if compressed:
            body = inflate(body, self.limits.body_bytes_max)
        records = open_body(form, body, headers, self.limits.records_max)
        dead = intake.judge(records)
        batch = Batch()
        intake.add(records, dead, naming, received_at, batch)
        return batch, dead

    def _told(self, n: int, dead: list[Dead], offsets: str) -> Response:
        """Return the answer to an append; without offsets it does not say that it is durable."""
        status = 200 if offsets else 202
        headers = [JSON, ("x-headrace-offsets", offsets)] if offsets else [JSON]
        if not dead:
            return Response(status, headers, b'{"accepted":%d,"dead":0,"errors":[]}' % n)
        errors = [
            {
                "index": one.position,
                "code": one.fault.code,
                "message": one.fault.message[:_MESSAGE_LENGTH_MAX],
            }
            for one in dead[: self.limits.errors_listed_max]
        ]
        told = {"accepted": n - len(dead), "dead": len(dead), "errors": errors}
        return Response(status, headers, msgspec.json.encode(told))


def _read_only(handler: Handler) -> Place:
    return Place(READ, {"GET": handler, "HEAD": handler})


def _naming(request: Request, client: str) -> Naming:
    headers = request.headers
    return naming_of(client, headers.get("idempotency-key"), headers.get("headrace-key"))


async def _no_topic(request: Request, client: str) -> Response:  # noqa: ARG001 - a handler
    raise Invalid(
        f"There is no topic at {request.path[:_PATH_LENGTH_MAX]}",
        hint=f"GET {TOPICS} lists the topics.",
        code="unknown_topic",
    )


async def _of_changes(request: Request, client: str) -> Response:  # noqa: ARG001 - a handler
    raise Invalid(
        f"{request.path[:_PATH_LENGTH_MAX]} holds what views change, and takes nothing else",
        hint=f"Read it: GET {request.path[:_PATH_LENGTH_MAX]}/records",
        code="forbidden",
    )


async def _head(route: CompiledRoute, request: Request, client: str) -> Response:  # noqa: ARG001
    # HEAD has to be safe: it answers as GET would and makes no event.
    return Response(route.reply.status, route.reply.headers)


def _waits(query: str) -> bool:
    for value in parse_qs(query, keep_blank_values=True).get("wait", []):
        if value.lower() not in _WAIT:
            raise Invalid(
                "wait has to be true or false", hint="Use ?wait=false.", code="invalid_parameter"
            )
        return _WAIT[value.lower()]
    return True


def _offsets(appended: list[Appended], first: int, n: int) -> str:
    """Return where the records [first, first + n) of a group ended: `topic/partition=offset`.

    The offset is the one after the last record, so a reader that has come that far has seen them.
    """
    if len(appended) == 1:
        part = appended[0]
        return f"{part.topic}/{part.partition}={part.base_offset + first + n}"
    ends = []
    for part in appended:
        k = bisect_left(part.positions, first + n)
        if k and part.positions[k - 1] >= first:
            ends.append(f"{part.topic}/{part.partition}={part.base_offset + k}")
    return ",".join(ends)


def unexpected(error: Exception) -> Internal:
    """Log an exception without what it holds, and return the error to answer with."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame else "?"
    _logger.error("Unexpected %s in %s", type(error).__name__, place)
    return Internal("An unexpected error; nothing was acknowledged", hint="Send it again.")
