from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.control.known_keys import known_keys
from headrace.model.clock import ManualClock
from headrace.model.plan import Keyed, Plan, Table, TableInput
from headrace.tables.delta import DeltaTables

SCHEMA = pa.schema([("_topic", pa.string()), ("_key", pa.string()), ("n", pa.int64())])


def table(name: str, *topics: str, is_keyed: bool = True) -> Table:
    inputs = tuple(TableInput(t, "", ()) for t in topics)
    return Table(name, inputs, (), keyed=Keyed(("_key",)) if is_keyed else None)


def fill(tables: DeltaTables, name: str, *files: list[tuple[str, str | None]]) -> None:
    made = tables.create(name, SCHEMA)
    for rows in files:
        columns = [{"_topic": t, "_key": k, "n": n} for n, (t, k) in enumerate(rows)]
        made.commit([tables.stage(name, pa.Table.from_pylist(columns, SCHEMA))])


def test_the_keys_of_a_topic_are_those_of_the_keyed_tables_over_it(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path, ManualClock())
    fill(tables, "tables/both", [("a", "1"), ("b", "2")], [("a", "kœy"), ("a", None)])
    fill(tables, "tables/one", [("a", "3"), ("a", "1")])
    fill(tables, "tables/plain", [("a", "not of a keyed table")])
    plan = Plan(
        "p",
        tables=(
            table("both", "a", "b"),
            table("one", "a"),
            table("plain", "a", is_keyed=False),
            table("not_there_yet", "a"),
        ),
    )
    assert set(known_keys(plan, tables, "a")) == {b"1", "kœy".encode(), b"3"}
    assert list(known_keys(plan, tables, "b")) == [b"2"]
    assert list(known_keys(plan, tables, "c")) == []
    assert list(known_keys(msgspec.structs.replace(plan, tables=()), tables, "a")) == []
