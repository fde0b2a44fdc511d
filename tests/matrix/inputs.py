"""What is sent to each pipeline of the matrix: the same records, ids and times in every run.

Among them are invalid records, repeats of a client's id within the horizon and past it, bad records
that come again mended, records that were received before those in front of them, and records that
no client named. Whatever a record's fate hangs on holds with any number of partitions: a name has
the same key each time, and what must lie within the horizon or past it does so by minutes,
whichever records share a partition's clock.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from headrace.model.batch import UNMARKED, Batch
from headrace.model.clock import rfc3339, uuid7
from headrace.model.errors import Invalid
from headrace.model.ids import client_id
from headrace.model.plan import Plan
from headrace.model.source import DELETED_HEADER, SEEN_AT_HEADER
from headrace.stage.validate import Validator
from headrace.testing.services.generated import GeneratedGbif, GeneratedIdigbio, GeneratedObis
from headrace.testing.services.taxa import Taxa

START_US = 1_704_067_200_000_000
"""2024-01-01, so that every window has passed when the tests run."""
STEP_US = 1_000_000
SECOND = 1_000_000
LATE_S_MAX = 60
REPEATS_S = (30, 400)
"""Within the horizon of ten minutes, whatever is late."""
COMES_BACK_S = 1_200
"""Past it, also for what was bad at first and came again mended, which counts from then on."""
CALL_RECORDS_MAX = 60

BAD = (b"{", b"\xff\xfe", b"[1]", b'{"kind":5,"event_type":7,"id":[]}', b"null", b"[" * 50, b"")


class Sent(NamedTuple):
    """A record as a client sends it. `name` is the client's own for it, if it has one."""

    topic: str
    value: bytes
    name: str | None = None
    key: bytes | None = None
    headers: bytes = b""


class Call(NamedTuple):
    """What one append takes."""

    topic: str
    records: Batch


def calls(plan: Plan, records: int, *, leaps: bool = False) -> list[Call]:
    """Return what is appended for a pipeline: about so many records.

    With `leaps` some doors' clocks are wrong by hours, and one client gives its names to other keys
    too: then the partitions decide what is a duplicate.
    """
    chance = random.Random(f"{plan.name} {leaps}")
    validators = {t.name: Validator(t.schema) for t in plan.topics}
    made: list[Call] = []
    under_way: dict[str, Call] = {}
    for at_us, sent in _timed(plan, records, chance, leaps=leaps):
        last = under_way.get(sent.topic)
        if last is None or len(last.records) >= chance.randint(1, CALL_RECORDS_MAX):
            last = under_way[sent.topic] = Call(sent.topic, Batch())
            made.append(last)
        chosen = sent.name and client_id("matrix", sent.topic, sent.name)
        last.records.add(
            sent.value,
            received_at=at_us,
            id=chosen or uuid7(at_us // 1000, chance.randbytes(10)),
            key=sent.key,
            headers=sent.headers,
            mark=_mark(validators[sent.topic], sent.value) if chance.random() < 0.5 else UNMARKED,
        )
    return made


def size_bytes(made: list[Call]) -> int:
    """Return how many bytes an embedded log takes for it, about."""
    return sum(call.records.size_bytes for call in made)


def _mark(validator: Validator, value: bytes) -> int:
    """Return what a door marks a record with that it has found valid."""
    try:
        validator.check(value)
    except Invalid:
        return UNMARKED
    return validator.fingerprint


def _timed(
    plan: Plan, records: int, chance: random.Random, *, leaps: bool
) -> Iterator[tuple[int, Sent]]:
    """Yield records with when they were received, repeats and bad ones among them."""
    fresh = RECORDS[plan.name](chance)
    again: list[tuple[int, int, Sent]] = []
    for i in range(records):
        now_us = START_US + i * STEP_US
        again.sort(key=lambda one: one[:2])
        if again and again[0][0] <= now_us:
            sent = again.pop(0)[2]
        else:
            sent = next(fresh)
            again += [(now_us + s * SECOND, i, r) for s, r in _later(sent, chance)]
            if chance.random() < 0.04:
                sent = sent._replace(value=chance.choice(BAD))
        # A thing has its own key, or no partition could say which of its versions is the last.
        if leaps and sent.name and sent.topic != "things" and chance.random() < 0.05:
            sent = sent._replace(key=chance.choice([b"p", b"q", b"r"]))
        if leaps and (i // 200) % 4 == 2:
            now_us -= 7200 * SECOND
        elif chance.random() < 0.1:
            now_us -= chance.randrange(LATE_S_MAX * SECOND)
        yield now_us, sent


def _later(sent: Sent, chance: random.Random) -> Iterator[tuple[int, Sent]]:
    """Yield in how many seconds a client sends its record again, and what it sends then.

    A client that sent something bad sends the right thing under the same name.
    """
    if sent.name is None:
        return
    if chance.random() < 0.12:
        yield chance.randint(*REPEATS_S), sent
    if chance.random() < 0.05:
        yield COMES_BACK_S, sent


def _game(chance: random.Random) -> Iterator[Sent]:
    kinds = {
        "events": ["default", "purchase_sword", "purchase_knife", "buy_sword", "joined_guild:red"],
        "MessageHistory": ["request_group", "accept_member", "decline_member", "message"],
    }
    number = 0
    while True:
        number += 1
        topic = chance.choice(["events", "events", "MessageHistory"])
        event: dict[str, Any] = {"event_type": chance.choice(kinds[topic])}
        if event["event_type"].startswith("joined_guild"):
            event["event_type"] = f"joined_guild:{chance.choice(['red', 'blue', ''])}"
        event["Host"] = f"user{chance.randrange(30)}.example.com"
        event["User-Agent"] = chance.choice(["curl/8", "ApacheBench/2.3", None])
        if chance.random() < 0.3:
            event |= {"Accept": "*/*", "description": chance.choice(["sharp", "très aigu", ""])}
        name = f"play-{number}" if chance.random() < 0.5 else None
        yield Sent(topic, _json(event), name)


SERVICES = {
    "gbif": (GeneratedGbif, "key"),
    "obis": (GeneratedObis, "id"),
    "idigbio": (GeneratedIdigbio, "uuid"),
}
KNOWN_RECORDS = 300


def _services() -> dict[str, tuple[Any, str]]:
    taxa = Taxa(5, species=60)
    return {name: (made(5, KNOWN_RECORDS, taxa), key) for name, (made, key) in SERVICES.items()}


def _occurrences(chance: random.Random) -> Iterator[Sent]:
    services = _services()
    number = 0
    while True:
        number += 1
        topic = chance.choice(list(services))
        made, _ = services[topic]
        record = made[chance.randrange(KNOWN_RECORDS)]
        yield Sent(topic, _json(record), f"page-{number}" if chance.random() < 0.7 else None)


def _biodiversity(chance: random.Random) -> Iterator[Sent]:
    """Yield versions of records as `pull` appends them: identified anew, gone, and back again."""
    services = _services()
    sweep = 0
    while True:
        sweep += 1
        topic = chance.choice([*services, *services, "source_counts"])
        seen_at = rfc3339(START_US + (sweep - chance.choice([0, 0, 0, 300])) * STEP_US)
        if topic == "source_counts":
            source = chance.choice(list(services))
            count = {"source": source, "kind": source, "filter": chance.choice(["", "taxon=1"])}
            yield Sent(topic, _json(count | {"records": sweep, "asked_at": seen_at}))
            continue
        made, key = services[topic]
        record = made[chance.randrange(KNOWN_RECORDS)]
        headers = {SEEN_AT_HEADER: seen_at}
        name = None
        if chance.random() < 0.1:
            record = {key: record[key]}
            headers[DELETED_HEADER] = "true"
        elif chance.random() < 0.5:
            record = made[chance.randrange(KNOWN_RECORDS)] | {key: record[key]}
            name = f"{record[key]} {sweep}"
        yield Sent(topic, _json(record), name, str(record[key]).encode(), _json(headers))


def _factory(chance: random.Random) -> Iterator[Sent]:
    number = 0
    while True:
        number += 1
        machine = chance.choice(["press-1", "press-2", "oven-1"])
        # A few have a time that is none: no row can be made of them.
        at = "soon" if chance.random() < 0.005 else rfc3339(START_US + number * STEP_US)
        happened = {"time": at, "machine": machine}
        name = f"seen-{number}" if chance.random() < 0.6 else None
        if chance.random() < 0.7:
            metric = chance.choice(["temperature", "power"])
            happened |= {"metric": metric, "value": round(chance.gauss(60.0, 4.0), 2)}
            yield Sent("metrics", _json(happened), name, machine.encode())
            continue
        step = chance.choice(["started", "scrapped", "finished"])
        happened |= {"order": f"WO-{number // 5}", "step": step, "pieces": chance.randrange(200)}
        yield Sent("workorder", _json(happened), name, machine.encode())


def _everything(chance: random.Random) -> Iterator[Sent]:
    number = 0
    makers: list[Callable[[random.Random, int], Sent]] = [_event, _event, _other, _free, _thing]
    while True:
        number += 1
        sent = chance.choice(makers)(chance, number)
        yield sent._replace(name=f"{number}") if chance.random() < 0.6 else sent


def _event(chance: random.Random, number: int) -> Sent:
    moment = rfc3339(START_US + chance.randrange(1_500) * SECOND)
    may_be: dict[str, Any] = {
        "n": chance.choice([0, 1, -3, 7, 2**40, None]),
        "x": chance.choice([0.1, -0.0, 1e16, 2.5, 1e-300, 1e300, None]),
        "price": chance.choice(["0.10", "-5.55", "99999999.99"]),
        "ok": chance.choice([True, False, None]),
        # The square of one of them is no INTEGER, and one is no number. Those are few: of dozens
        # that fail in an epoch some get a common message, which then hangs on the cut.
        "text": chance.choice(["7", "-2", "12", "none", "50000", *[f"{number % 500}"] * 15]),
        "seen_at": moment,
        "at_ms": START_US // 1000 + chance.randrange(10**6),
        "day": moment[:10],
        "tags": chance.choice([[], ["a"], ["b", 'c"']]),
        "where": chance.choice([{"name": "hall"}, {"name": "ürzig", "floor": 2}, None]),
        "more": chance.choice([{}, {"a": 1, "b": 2}, None]),
        "rest": chance.choice([[1, {"deep": None}], "text", 5]),
        "User-Agent": "curl/8",
        "unknown": 1,
    }
    fields = {k: v for k, v in may_be.items() if chance.random() < 0.7}
    headers = _json({"trace": f"{number}"}) if chance.random() < 0.2 else b""
    return Sent("events", _json({"kind": chance.choice("abc"), **fields}), headers=headers)


def _other(chance: random.Random, number: int) -> Sent:
    return Sent("other", _json({"kind": chance.choice("abd"), "n": number % 50}))


def _free(chance: random.Random, _number: int) -> Sent:
    return Sent("free", _json({"any": ["thing"] * chance.randrange(4)}))


def _thing(chance: random.Random, _number: int) -> Sent:
    key = f"thing {chance.randrange(80)}"
    thing = {
        "key": key,
        "version": chance.choice([None, *range(8)]),
        "kind": chance.choice(["red", "green", None]),
        "n": chance.choice([None, -3, 0, 5]),
        "x": chance.choice([None, 0.0, 1.5, -0.1, float(2**60)]),
        "tags": chance.choice([[], ["a"], ["b", 'c"']]),
        "gone": chance.random() < 0.2,
    }
    return Sent("things", _json(thing), key=key.encode())


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


RECORDS: dict[str, Callable[[random.Random], Iterator[Sent]]] = {
    "game": _game,
    "occurrences": _occurrences,
    "biodiversity": _biodiversity,
    "factory": _factory,
    "everything": _everything,
}
"""Records of each pipeline, without end, by the pipeline's name."""
