"""`Record`, the class that a user derives from to say what a topic's records look like."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
from typing import Any, TypeAlias, dataclass_transform

import msgspec

from headrace.define.problem import Place, caller
from headrace.model.schema import Unit

if sys.version_info >= (3, 14):
    import annotationlib

Json: TypeAlias = Any
"""Annotation of a field that takes any JSON value; its column holds the JSON text."""


class FieldSpec(msgspec.Struct, frozen=True):
    """What `field` was told; the class statement takes it from there."""

    alias: str | None
    default: Any
    unit: Unit | None
    digits: tuple[int, int] | None


_NOTHING = FieldSpec(None, msgspec.NODEFAULT, None, None)


def field(
    alias: str | None = None,
    *,
    default: object = msgspec.NODEFAULT,
    unit: Unit | None = None,
    digits: tuple[int, int] | None = None,
) -> Any:  # noqa: ANN401 - it stands where a value of the annotated type stands
    """Say more of a field than its annotation can.

    `alias` is its name in JSON where that is no Python name, such as `User-Agent`. Without
    `default` a record must have the field. `unit` makes a datetime an epoch number in "s", "ms" or
    "us". `digits` are a Decimal's digits in all and after the point: `digits=(18, 2)`.
    """
    return FieldSpec(alias, default, unit, digits)


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
class RecordMeta(msgspec.StructMeta):
    """Makes the class statement of a `Record`: fields by keyword, and what `field` was told."""

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        **options: Any,  # noqa: ANN401
    ) -> RecordMeta:
        """Build the class; keep the specs of its fields and the place of its statement."""
        specs = {k: v for k, v in namespace.items() if isinstance(v, FieldSpec)}
        plain = {k: _plain(specs[k]) if k in specs else v for k, v in namespace.items()}
        plain |= {
            "__headrace_fields__": specs,
            "__headrace_place__": caller(inspect.currentframe()),
        }
        return super().__new__(cls, name, bases, plain, **{"kw_only": True, **options})


class Record(msgspec.Struct, metaclass=RecordMeta):
    """Base of a user's record types.

    ::

        class GameEvent(Record):
            event_type: str
            user_agent: str | None = field("User-Agent", default=None)

    A field without a default must be there; `| None` allows null. See `model/schema.py` for the
    types and their columns.
    """


def spec_of(record: type[Record], name: str) -> FieldSpec:
    """Return what was said of a field, or a spec that says nothing."""
    owner = _owner(record, name)
    specs: dict[str, FieldSpec] = vars(owner).get("__headrace_fields__", {})
    return specs.get(name, _NOTHING)


def place_of(record: type[Record], field_name: str | None = None) -> Place:
    """Return where a record class was written, or one of its fields."""
    owner = record if field_name is None else _owner(record, field_name)
    place: Place = vars(owner)["__headrace_place__"]
    if field_name is None:
        return place
    annotated = re.compile(rf"\s+{re.escape(field_name)}\s*:")
    for number, line in enumerate(linecache.getlines(place.file)[place.line :], place.line + 1):
        if annotated.match(line):
            return Place(place.file, number)
        if line[:1].strip():
            break  # the class statement is over
    return place


def _owner(record: type, name: str) -> type:
    """Return the class that annotates a field: the record or a base of it."""
    return next((part for part in record.__mro__ if name in _annotated(part)), record)


def _annotated(part: type) -> dict[str, Any]:
    """Return a class's own annotations, without resolving names that do not exist yet."""
    if sys.version_info >= (3, 14):
        return annotationlib.get_annotations(part, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(part)


def _plain(spec: FieldSpec) -> object:
    """Return what msgspec is to be told of a field."""
    return msgspec.field(name=spec.alias, default=spec.default)
