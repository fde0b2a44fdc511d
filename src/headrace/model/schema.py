"""The shape of a record as a value: what a typed `Record` class compiles to.

A schema can be sent to another machine, compared and fingerprinted, and both sides of the system
are made from it: the validator (msgspec) and the decoder (DuckDB).

=============  =======================  ==================  ==========================
kind           Python annotation        JSON                column (DuckDB / Arrow)
=============  =======================  ==================  ==========================
string         str, Literal[str, …]     string              VARCHAR / string
integer        int                      integer, 64 bits    BIGINT / int64
text           int | str                string, or integer  VARCHAR / string, the
                                        of 64 bits          integer as its digits
number         float                    finite number       DOUBLE / float64
boolean        bool                     true, false         BOOLEAN / bool
timestamp      datetime                 RFC 3339 string,    TIMESTAMPTZ /
                                        or epoch in `unit`  timestamp[us, UTC]
date           date                     YYYY-MM-DD          DATE / date32
decimal        Decimal, with digits     string or number    DECIMAL(p, s) / decimal128
list           list[T]                  array               T[] / list<T>
map            dict[str, T]             object              MAP(VARCHAR, T) / map
struct         a Record class           object              STRUCT(…) / struct
json           Json                     anything            VARCHAR / string, JSON text
=============  =======================  ==================  ==========================
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

Kind = Literal[
    "string",
    "integer",
    "text",
    "number",
    "boolean",
    "timestamp",
    "date",
    "decimal",
    "list",
    "map",
    "struct",
    "json",
]
Unit = Literal["s", "ms", "us"]


class Type(msgspec.Struct, frozen=True, omit_defaults=True):
    """The type of a value. Which of the members below `kind` count depends on the kind."""

    kind: Kind
    unit: Unit | None = None
    """timestamp: unit of an epoch number; None reads RFC 3339 text."""
    precision: int = 0
    """decimal: digits in all, 1 to 38."""
    scale: int = 0
    """decimal: digits after the point."""
    item: Type | None = None
    """list, map: type of the values (their nulls are allowed if `item_nullable`)."""
    item_nullable: bool = False
    fields: tuple[Field, ...] = ()
    """struct: its fields in order."""
    choices: tuple[str, ...] = ()
    """string: the only values allowed, if any."""
    limits: dict[str, float | int | str] = {}
    """Constraints by their msgspec names: ge, gt, le, lt, min_length, max_length, pattern."""


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """A field of a record or struct."""

    name: str
    """Column name, an identifier."""
    alias: str
    """Name in JSON; any text."""
    type: Type
    nullable: bool = False
    """Whether JSON null is a value of it (annotation `| None`)."""
    required: bool = True
    """Whether a record without it is refused."""
    default: str | None = None
    """JSON text of what a record without it gets; None with `required` false means null."""


class Schema(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shape of a topic's records. `name` is the class's, for messages."""

    name: str
    fields: tuple[Field, ...]

    @property
    def fingerprint(self) -> int:
        """Return 64 bits, never 0, that differ whenever what is valid may differ."""
        text = msgspec.json.encode(self, order="sorted")
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1
