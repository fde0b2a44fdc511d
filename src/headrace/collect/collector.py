"""The HTTP door as a function: a request in, a response out, records in the log between.

Order of effects for a request that carries records:

1. The path names what it is for, the headers say that it may be: 404, 405, 401, 415, 429.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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
from headrace.collect.groups import Groups, places
from headrace.collect.intake import Dead, Intake, Naming, naming_of
from headrace.collect.limits import Budget, Limits
from headrace.collect.metrics import DoorMetrics
from headrace.collect.readback import Readback
from headrace.collect.routes import CompiledRoute, find
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Internal, Invalid
from headrace.model.log import Appended, Log, LogReader
from headrace.model.plan import Plan

TOPICS = "/v1/topics"
_MESSAGE_LENGTH_MAX = 300
_PATH_LENGTH_MAX = 100
_WAIT = {"": True, "true": True, "1": True, "false": False, "0": False}

_logger = logging.getLogger(__name__)

Admit = Callable[[Request, str], str]
"""Says who may append to a topic: returns the scope of the client's own record names.

Raises `Invalid` with code `unauthorized` or `forbidden`, `Unavailable` with code `rate_limited`.
"""


def admit_all(request: Request, topic: str) -> str:  # noqa: ARG001 - the shape of `Admit`
    """Let everyone in, as one anonymous client."""
    return ""


class Collector:
    """Answers the paths of the HTTP door. Used on one event loop.

    `reader` opens a reading end for reading back; `on_lost` hears of an error after which nothing
    more may be acknowledged: the process has to end and recover from disk.
    """

    def __init__(
        self,
        plan: Plan,
        log: Log,
        clock: Clock,
        limits: Limits,
        *,
        admit: Admit = admit_all,
        reader: Callable[[], AbstractContextManager[LogReader]] | None = None,
        on_lost: Callable[[HeadraceError], None] = lambda _: None,
    ) -> None:
        self.limits = limits
        self.budget = Budget(limits.in_flight_bytes_max)
        self.metrics = DoorMetrics([topic.name for topic in plan.topics])
        self.groups = Groups(log, clock, on_lost)
        self._clock = clock
        self._admit = admit
        self._thread = ThreadPoolExecutor(1, "collect-large")
        self._intakes = {topic.name: Intake(topic) for topic in plan.topics}
        self._paths: dict[str, dict[str, Handler]] = {}
        self._patterns: list[CompiledRoute] = []
        self._readback = Readback(reader or (lambda: nullcontext(log)), plan)
        self._paths[TOPICS] = {"GET": self._readback.topics, "HEAD": self._readback.topics}
        for name, intake in self._intakes.items():
            self._paths[f"{TOPICS}/{name}"] = {"POST": partial(self._append, intake)}
            records = partial(self._readback.records, name)
            self._paths[f"{TOPICS}/{name}/records"] = {"GET": records, "HEAD": records}
        for route in map(CompiledRoute, plan.routes):
            if route.parameters:
                self._patterns.append(route)
            else:
                self._paths[route.route.path] = self._route_handlers(route, {})

    def close(self) -> None:
        """Release its threads; requests under way have ended before."""
        self._thread.shutdown()
        self._readback.close()

    async def respond(self, request: Request) -> Response | None:
        """Return the answer to a request, or None if its path is not one of the door's."""
        handlers = self._paths.get(request.path) or self._find(request.path)
        if handlers is None:
            return None
        handler = handlers.get(request.method)
        if handler is None:
            return self._other_method(request.method, handlers)
        try:
            return await handler(request)
        except HeadraceError as error:
            return refusal(error)
        except Exception as error:  # noqa: BLE001 - the door stays open whatever one request does
            return refusal(unexpected(error))

    def _find(self, path: str) -> dict[str, Handler] | None:
        found = find(self._patterns, path)
        if found is not None:
            return self._route_handlers(*found)
        if path.startswith(f"{TOPICS}/"):
            return {"GET": _no_topic, "POST": _no_topic}
        return None

    def _route_handlers(
        self, route: CompiledRoute, parameters: dict[str, str]
    ) -> dict[str, Handler]:
        handler = partial(self._event, route, self._intakes[route.route.topic], parameters)
        return {"GET": handler, "POST": handler, "HEAD": partial(_head, route)}

    def _other_method(self, method: str, handlers: dict[str, Handler]) -> Response:
        allowed = ", ".join([*handlers, "OPTIONS"])
        if method == "OPTIONS":
            return Response(204, [("allow", allowed)])
        return method_not_allowed(method, allowed)

    async def _event(
        self,
        route: CompiledRoute,
        intake: Intake,
        parameters: dict[str, str],
        request: Request,
    ) -> Response:
        naming = self._naming(intake, request)
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

    async def _append(self, intake: Intake, request: Request) -> Response:
        headers = request.headers
        naming = self._naming(intake, request)
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
        else:
            records = open_body(form, body, headers, self.limits.records_max)
            dead = intake.judge(records)
            group = self.groups.group(intake.name, len(body))
            first = len(group.batch)
            intake.add(records, dead, naming, received_at, group.batch)
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

    def _naming(self, intake: Intake, request: Request) -> Naming:
        scope = self._admit(request, intake.name)
        headers = request.headers
        return naming_of(scope, headers.get("idempotency-key"), headers.get("headrace-key"))

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


async def _no_topic(request: Request) -> Response:
    raise Invalid(
        f"There is no topic at {request.path[:_PATH_LENGTH_MAX]}",
        hint=f"GET {TOPICS} lists the topics.",
        code="unknown_topic",
    )


async def _head(route: CompiledRoute, request: Request) -> Response:  # noqa: ARG001 - a handler
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
