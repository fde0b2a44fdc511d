"""What becomes of a topic's records before the log has them: judged, marked, named, keyed."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headrace.collect.envelopes import Records, refuse_unless_json
from headrace.model.batch import UNMARKED, Batch
from headrace.model.errors import Invalid
from headrace.model.ids import NO_ID, client_id
from headrace.model.plan import Topic
from headrace.stage.validate import Validator

_NAME_LENGTH_MAX = 255
_PERHAPS_NO_JSON = {"invalid_json", "invalid_utf8", "too_deep"}


class Naming(msgspec.Struct, frozen=True, gc=False):
    """What a request says about all its records."""

    scope: str
    """Whose names these are: no two scopes share a name."""
    key: bytes | None
    """`Headrace-Key`: the key of every record without its own."""
    request_name: str | None
    """`Idempotency-Key`: with a record's index, its name unless it has its own."""


class Dead(NamedTuple):
    """A record that will become a dead letter."""

    position: int
    fault: Invalid


class Intake:
    """The door of one topic."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.name = topic.name
        self._validator = Validator(topic.schema)
        self._id_picker = _picker(topic.id_field)
        self._key_picker = _picker(topic.key_field)

    def judge(self, records: Records) -> list[Dead]:
        """Return the records that are not valid.

        A body that was to be one record and is no JSON at all is refused instead.
        """
        refused = self._validator.check_many(records.values)
        dead = [Dead(position, fault) for position, fault in refused.items()]
        if dead and records.whole and dead[0].fault.code in _PERHAPS_NO_JSON:
            refuse_unless_json(records.values[0])
        return dead

    def add(
        self, records: Records, dead: list[Dead], naming: Naming, received_at: int, into: Batch
    ) -> None:
        """Add every record to a batch, in order, those that are valid with their mark.

        A record that its client did not name has `NO_ID` until the batch's group gives it one.
        """
        n = len(records.values)
        into.values += records.values
        into.received_at += [received_at] * n
        into.headers += records.headers or [b""] * n
        marks = [self._validator.fingerprint] * n
        for one in dead:
            marks[one.position] = UNMARKED
        into.marks += marks
        is_named = self._id_picker or naming.request_name is not None or records.names
        into.ids += self._ids(records, naming) if is_named else [NO_ID] * n
        is_keyed = self._key_picker or naming.key or records.keys
        into.keys += self._keys(records, naming) if is_keyed else [None] * n

    def _ids(self, records: Records, naming: Naming) -> list[bytes]:
        ids = [NO_ID] * len(records.values)
        for i, value in enumerate(records.values):
            name = self._own_name(value)
            if name is None and records.names is not None:
                name = records.names[i]
            if name is None and naming.request_name is not None:
                name = _text(["idempotency-key", naming.request_name, i])
            if name is not None:
                ids[i] = client_id(naming.scope, self.name, name)
        return ids

    def _own_name(self, value: bytes) -> str | None:
        chosen = _pick(self._id_picker, value)
        return None if chosen in (None, "") else _text(["field", chosen])

    def _keys(self, records: Records, naming: Naming) -> list[bytes | None]:
        keys = list(records.keys or [None] * len(records.values))
        for i, value in enumerate(records.values):
            if keys[i] is None:
                keys[i] = naming.key
            if keys[i] is None:
                keys[i] = _key_bytes(_pick(self._key_picker, value))
        return keys


def naming_of(
    scope: str, idempotency_key: str | None, key: str | None, length_max: int = _NAME_LENGTH_MAX
) -> Naming:
    """Return what a request's headers say about its records."""
    if idempotency_key is not None and not 0 < len(idempotency_key) <= length_max:
        raise Invalid(
            f"Idempotency-Key has to have 1 to {length_max} characters",
            hint="Use a UUID for each request, and the same one when you send it again.",
            code="invalid_idempotency_key",
        )
    return Naming(scope, key.encode() if key else None, idempotency_key)


def _picker(name: str | None) -> msgspec.json.Decoder[msgspec.Struct] | None:
    """Return a decoder of nothing but the top-level field of this JSON name."""
    if name is None:
        return None
    fields = [("chosen", str | int | None, None)]
    picked = msgspec.defstruct("Picked", fields, rename={"chosen": name})
    return msgspec.json.Decoder(picked)


def _pick(picker: msgspec.json.Decoder[msgspec.Struct] | None, value: bytes) -> str | int | None:
    """Return the field that `picker` looks for; None if it is not there or has another type."""
    if picker is None:
        return None
    try:
        (chosen,) = msgspec.structs.astuple(picker.decode(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return chosen


def _key_bytes(chosen: str | int | None) -> bytes | None:
    return None if chosen is None else str(chosen).encode("utf-8", "surrogatepass")


def _text(parts: list[str | int]) -> str:
    return msgspec.json.encode(parts).decode()
