"""What a table with a key declares: which columns are its key, its version and its deletions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headrace.define.binder import Node
from headrace.define.pipeline import Table
from headrace.define.problem import Faults, nearest
from headrace.define.row_sql import RowSelect, table_columns
from headrace.define.view_types import INTEGERS, decimal_digits, is_nested
from headrace.model import plan as plans
from headrace.model.errors import Invalid
from headrace.model.plan import CHANGED_IN, KEY_COLUMN, SYSTEM_COLUMNS, WEIGHT, Column, Keyed, Topic

_ADDED = (*SYSTEM_COLUMNS, KEY_COLUMN)
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
_ORDERED = INTEGERS | {"TIMESTAMPTZ", "DATE", "VARCHAR"}
"""Types of a version beside whole decimals."""
_SAY_VERSION = (
    "Say which column orders the rows of a key: version=. _seen_at is when a record was seen where "
    "it comes from."
)


def compile_keyed(
    table: Table, selects: Sequence[RowSelect], topics: Mapping[str, Topic], faults: Faults
) -> plans.Table | None:
    """Return a keyed table as it is without its inputs, or None with at least one fault added.

    `selects` are the table's SELECTs, which have the same columns.
    """
    before = len(faults.problems)
    columns = {c.name: c for c in table_columns(selects[0], _ADDED)}
    for fault in _faults(table, selects, topics, columns):
        faults.add(table.place, fault.message, hint=fault.hint, code=fault.code)
    if len(faults.problems) > before or table.key is None:
        return None
    kept = [c for c in columns.values() if c.name != table.deleted]
    # The columns that every table of its kind has come last, whatever was selected.
    last = [c for c in kept if c.name in _ADDED and c.name not in dict(selects[0].outputs)]
    first = [c for c in kept if c not in last]
    keyed = Keyed(table.key, table.version, table.deleted)
    return plans.Table(table.name, (), (*first, *last), keyed=keyed)


def _faults(
    table: Table,
    selects: Sequence[RowSelect],
    topics: Mapping[str, Topic],
    columns: Mapping[str, Column],
) -> Iterator[Invalid]:
    if not table.key:
        yield Invalid(
            f"No column is the key of the table {table.name!r}",
            hint="Say which columns name a row: key=.",
            code="bad_key",
        )
        return
    if table.retention is not None:
        yield Invalid(
            f"The table {table.name!r} has a key, so its rows do not go by their age",
            hint="Leave retention out, and take a row out by a record that says so: deleted=.",
            code="keyed_retention",
        )
    yield from _reserved(selects)
    yield from _columns(table, columns)
    if table.version is None:
        yield from _place_decides(table, selects, topics)


def _reserved(selects: Sequence[RowSelect]) -> Iterator[Invalid]:
    """Yield a fault for each name that a keyed table has for something of its own."""
    for select in selects:
        for item, (name, _) in zip(select.tree["select_list"], select.outputs, strict=True):
            own = name == KEY_COLUMN and item.get("column_names", [""])[-1].lower() == KEY_COLUMN
            if name.lower() in {KEY_COLUMN, WEIGHT, CHANGED_IN} and not own:
                yield Invalid(
                    f"{name!r} is the name of a column that tables with a key have themselves",
                    hint="Give the expression another name with AS.",
                    code="reserved_column",
                )


def _columns(table: Table, columns: Mapping[str, Column]) -> Iterator[Invalid]:
    """Yield what is wrong with the columns that a table names for its key and so on."""
    key = table.key or ()
    named = [("key", name) for name in key]
    named += [(w, n) for w, n in (("version", table.version), ("deleted", table.deleted)) if n]
    for what, name in named:
        if name not in columns:
            yield Invalid(
                f"{what}={name!r} names no column of {table.name!r}",
                hint=nearest(name, columns),
                code="unknown_column",
            )
        elif fault := _type_fault(what, columns[name]):
            yield fault
    names = [name for _, name in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield Invalid(
            f"{twice[0]!r} is given twice to {table.name!r}",
            hint="Key, version and deletions are each a column of its own.",
            code="bad_key",
        )


def _type_fault(what: str, column: Column) -> Invalid | None:
    """Return why a column's type does not serve, if it does not."""
    name, kind = column.name, column.type
    if what == "key" and (is_nested(kind) or kind in _FLOATS):
        return Invalid(
            f"key={name!r} is {kind}, of which no two can be safely told equal",
            hint="CAST it to VARCHAR, or name another column.",
            code="bad_key",
        )
    digits = decimal_digits(kind)
    if what == "version" and kind not in _ORDERED and not (digits and digits[1] == 0):
        return Invalid(
            f"version={name!r} is {kind}, but must be an integer, TIMESTAMPTZ, DATE or VARCHAR",
            hint="CAST it to one of them. VARCHAR is ordered as text: '10' comes before '9'.",
            code="bad_version",
        )
    if what == "deleted" and kind != "BOOLEAN":
        return Invalid(
            f"deleted={name!r} is {kind}, but must be BOOLEAN",
            hint=f"Write the condition that a key is gone: _deleted AS {name}.",
            code="bad_deleted",
        )
    return None


def _place_decides(
    table: Table, selects: Sequence[RowSelect], topics: Mapping[str, Topic]
) -> Iterator[Invalid]:
    """Yield a fault unless all rows of a key stand one after another in one partition."""
    if len(selects) > 1:
        yield Invalid(
            f"The rows of {table.name!r} come from several topics, so none of a key is the last",
            hint=_SAY_VERSION,
            code="no_version",
        )
        return
    (select,) = selects
    topic = topics[select.topic]
    if topic.partitions == 1 or any(n in _spread_by(select, topic) for n in table.key or ()):
        return
    by = f"by {topic.key_field!r}" if topic.key_field else "by no field"
    yield Invalid(
        f"The topic {topic.name!r} has {topic.partitions} partitions and is spread {by}, so the "
        f"rows of a key of {table.name!r} may be in several, where none is the last",
        hint=f"Declare the topic with key= the field of the table's key. Or: {_SAY_VERSION}",
        code="no_version",
    )


def _spread_by(select: RowSelect, topic: Topic) -> set[str]:
    """Return the outputs whose rows of one value are all in one partition."""
    fields = {KEY_COLUMN}
    if topic.schema and topic.key_field:
        fields |= {f.name.lower() for f in topic.schema.fields if f.alias == topic.key_field}
    alias = str(select.tree["from_table"].get("alias") or select.topic)
    pairs = zip(select.tree["select_list"], select.outputs, strict=True)
    return {KEY_COLUMN, *(name for item, (name, _) in pairs if _field_of(item, alias) in fields)}


def _field_of(item: Node, alias: str) -> str | None:
    """Return the field that an item is, as it is or as text; None if it is something else.

    A name before it is that of the relation, or else of a struct that the field is inside of.
    """
    if item.get("class") == "CAST" and item["type_expr"].get("type_name") == "VARCHAR":
        item = item["child"]
    names = item.get("column_names") if item.get("class") == "COLUMN_REF" else None
    if not names or [str(n).lower() for n in names[:-1]] not in ([], [alias.lower()]):
        return None
    return str(names[-1]).lower()


def mark_of(keyed: Keyed) -> str:
    """Return the words that a changelog carries, from which `compatible` knows how it was made."""
    return _MARK + msgspec.json.encode(keyed).decode()


def read_mark(word: str) -> Keyed | None:
    """Return what `mark_of` was given; None if the word is something else."""
    if not word.startswith(_MARK):
        return None
    return msgspec.json.decode(word.removeprefix(_MARK), type=Keyed)


_MARK = "headrace#keyed "
