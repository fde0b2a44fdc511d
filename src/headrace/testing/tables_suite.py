"""What every table storage guarantees, as a list that any storage's tests run over it.

```python
@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_mine_keeps(guarantee):
    guarantee(lambda clock: MyTables(place, clock))
```

Each guarantee is a function of a factory that opens the same, at first empty, place anew, as a
restart or another process does.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial

import pyarrow as pa

from headrace.model.clock import Clock, ManualClock
from headrace.model.errors import Fenced, HeadraceError, Invalid
from headrace.model.tables import DataFile, Snapshot, Table, Tables

MakeTables = Callable[[Clock], Tables]
_SEEDS = itertools.count()

NAME = "tables/events"
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("word", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
WIDE = pa.schema(
    [
        pa.field("required", pa.int64(), nullable=False),
        ("byte", pa.int8()),
        ("short", pa.int16()),
        ("integer", pa.int32()),
        ("float", pa.float32()),
        ("double", pa.float64()),
        ("boolean", pa.bool_()),
        ("date", pa.date32()),
        ("decimal", pa.decimal128(38, 6)),
        ("binary", pa.binary()),
        ("list", pa.list_(pa.field("element", pa.string()))),
        ("map", pa.map_(pa.string(), pa.field("value", pa.int64()))),
        (
            "struct",
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.field("element", pa.bool_())))]),
        ),
    ]
)
RACES = 20


def a_table_that_is_not_there_is_none(make: MakeTables) -> None:
    """Nothing is opened, read or named where there is nothing; a staged file is no table."""
    tables = make(_clock())
    tables.stage(NAME, _rows(0, 3))
    assert tables.open(NAME) is None
    assert tables.snapshot(NAME) is None
    assert tables.names() == []
    tables.drop("tables/never")


def a_new_table_is_empty_at_version_0(make: MakeTables) -> None:
    """It has its schema and no rows, and is there for whoever opens the place anew."""
    made = make(_clock()).create(NAME, SCHEMA).snapshot
    tables = make(_clock())
    assert (made.version, made.files, made.txns, made.schema) == (0, (), {}, SCHEMA)
    assert tables.snapshot(NAME) == _opened(tables).snapshot == made
    assert tables.names() == [NAME]
    assert tables.read(made) == SCHEMA.empty_table()


def a_table_is_created_once(make: MakeTables) -> None:
    """A second creation is `Fenced` and changes nothing."""
    tables = make(_clock())
    made = tables.create(NAME, SCHEMA).snapshot
    assert _is_fenced(lambda: tables.create(NAME, WIDE))
    assert tables.snapshot(NAME) == made


def what_is_staged_is_invisible(make: MakeTables) -> None:
    """Staging changes no version; committed, the rows are there as they were given."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    file = tables.stage(NAME, _rows(0, 100), unique=("number",), tags={"part": "groups"})
    assert table.refresh().version == 0
    assert (file.rows, file.tags) == (100, {"part": "groups"})
    snapshot = table.commit([file])
    assert snapshot.version == 1
    assert snapshot.files == (file,)
    assert tables.read(snapshot) == _rows(0, 100)


def a_commit_is_what_another_reads(make: MakeTables) -> None:
    """Version, files, numbers, words and schema are the same for owner and reader."""
    table = make(_clock()).create(NAME, SCHEMA)
    _append(make(_clock()), table, 0, 10, txns={"p#epoch": 1, "p#files": 7})
    snapshot = _append(
        make(_clock()), table, 10, 20, txns={"p#epoch": 2}, metadata={"offsets": '{"a": "é"}'}
    )
    assert snapshot.txns == {"p#epoch": 2, "p#files": 7}
    assert snapshot.metadata == {"offsets": '{"a": "é"}'}
    assert make(_clock()).snapshot(NAME) == snapshot == table.snapshot
    assert _opened(make(_clock())).snapshot == snapshot


def every_type_comes_back(make: MakeTables) -> None:
    """Values of every type that can be stored, with nulls, are read as they were written."""
    tables = make(_clock())
    table = tables.create(NAME, WIDE)
    rows = pa.Table.from_pylist([_wide_row(n) for n in range(10)], schema=WIDE)
    snapshot = table.commit([tables.stage(NAME, rows)])
    assert snapshot.schema == WIDE
    assert make(_clock()).snapshot(NAME) == snapshot
    assert tables.read(snapshot) == rows


def what_cannot_be_stored_is_refused(make: MakeTables) -> None:
    """A type or a name that Delta has not is `Invalid`, before anything is written."""
    tables = make(_clock())
    for schema in (
        pa.schema([("a", pa.uint64())]),
        pa.schema([("a", pa.timestamp("us"))]),
        pa.schema([("a", pa.list_(pa.time64("us")))]),
        pa.schema([("a b", pa.int64())]),
        pa.schema([("a", pa.int64()), ("A", pa.int64())]),
    ):
        assert _is_invalid(partial(tables.create, NAME, schema)), schema
    assert tables.names() == []


def a_stream_is_staged_as_one_file(make: MakeTables) -> None:
    """A RecordBatchReader makes the file that its rows in one table make; `scan` gives one."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    batches = [b for n in range(5) for b in _rows(n * 10, n * 10 + 10).to_batches()]
    first = tables.stage(NAME, pa.RecordBatchReader.from_batches(SCHEMA, batches))
    snapshot = table.commit([first])
    second = tables.stage(NAME, tables.scan(snapshot))
    assert (first.rows, first.stats) == (second.rows, second.stats)
    assert tables.read(table.commit([second], [first])) == _rows(0, 50)


def a_reader_sees_each_version(make: MakeTables) -> None:
    """A reader finds every commit at once, and an old snapshot stays readable."""
    tables, reader = make(_clock()), make(_clock())
    table = tables.create(NAME, SCHEMA)
    snapshots = [_append(tables, table, n, n + 1) for n in range(5)]
    for n, snapshot in enumerate(snapshots):
        assert reader.snapshot(NAME, snapshot.version) == snapshot
        assert reader.read(snapshot) == _rows(0, n + 1)
    assert reader.snapshot(NAME) == snapshots[-1]
    assert reader.snapshot(NAME, 99) is None
    newest = _append(tables, table, 5, 6)
    assert reader.snapshot(NAME) == newest


def files_are_replaced_in_one_commit(make: MakeTables) -> None:
    """Removed files are gone and added ones there in the same version."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    old = _append(tables, table, 0, 5).files
    new = tables.stage(NAME, _rows(5, 9))
    snapshot = table.commit([new], old)
    assert snapshot.files == (new,)
    assert make(_clock()).snapshot(NAME) == snapshot


def one_of_two_owners_wins(make: MakeTables) -> None:
    """The other is `Fenced`, stays so, and its files are not in the table."""
    tables = make(_clock())
    ours = tables.create(NAME, SCHEMA)
    theirs = _opened(make(_clock()))
    won = _append(tables, theirs, 0, 3)
    for _ in range(2):
        assert _is_fenced(lambda: _append(tables, ours, 100, 103))
    assert tables.snapshot(NAME) == won
    assert ours.refresh() == won


def two_owners_racing_have_one_winner_a_version(make: MakeTables) -> None:
    """Many times at the same moment: as many versions as commits that returned, none doubled."""
    tables = make(_clock())
    tables.create(NAME, SCHEMA)
    for n in range(RACES):
        owners = [_opened(make(_clock())) for _ in range(2)]
        staged = [tables.stage(NAME, _rows(n, n + 1)) for _ in owners]
        barrier = threading.Barrier(len(owners))
        won: list[Snapshot] = []
        racers = [
            threading.Thread(target=_race, args=(barrier, o, f, won))
            for o, f in zip(owners, staged, strict=True)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [s.version for s in won] == [n + 1]
    snapshot = _snapshot(tables)
    assert snapshot.version == RACES
    assert tables.read(snapshot) == _rows(0, RACES)


def a_stalled_owner_is_fenced_after_log_cleanup(make: MakeTables) -> None:
    """Even when the versions made since are cleaned away, so that their names are free again."""
    clock = _clock()
    tables = make(clock)
    stalled = tables.create(NAME, SCHEMA)
    owner = _opened(make(clock))
    for n in range(5):
        _append(tables, owner, n, n + 1)
    owner.checkpoint(0)
    _append(tables, owner, 5, 6)
    for _ in range(2):
        assert _is_fenced(lambda: _append(tables, stalled, 100, 103))
    assert _is_fenced(lambda: tables.create(NAME, SCHEMA))
    assert _sorted(make(clock).read(_snapshot(make(clock)))) == _rows(0, 6)
    added = owner.added_since(5)
    assert added is not None
    assert [f.rows for a in added for f in a.files] == [1]
    assert owner.added_since(1) is None


def columns_are_only_added(make: MakeTables) -> None:
    """A new column is null in older rows; any other change is `Invalid` and makes no version."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    _append(tables, table, 0, 2)
    wider = SCHEMA.append(pa.field("more", pa.list_(pa.field("element", pa.int64()))))
    rows = _rows(2, 4).append_column(wider.field("more"), pa.array([[1], None], wider[3].type))
    snapshot = table.commit([tables.stage(NAME, rows)], schema=wider)
    assert snapshot.schema == wider
    assert make(_clock()).snapshot(NAME) == snapshot
    assert tables.read(snapshot).column("more").to_pylist() == [None, None, [1], None]
    for worse in (
        wider.remove(1),
        wider.set(0, pa.field("number", pa.int32())),
        wider.append(pa.field("must", pa.int64(), nullable=False)),
        wider.append(pa.field("NUMBER", pa.int64())),
    ):
        assert _is_invalid(partial(table.commit, schema=worse)), worse
    assert table.refresh() == snapshot


def additions_are_followed(make: MakeTables) -> None:
    """Each commit's new files and numbers, oldest first; rewrites add none, removals are told."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    first = _append(tables, table, 0, 2, txns={"e": 1}).files
    second = _append(tables, table, 2, 4, txns={"e": 2}).files[1:]
    merged = tables.stage(NAME, _rows(0, 4))
    table.commit([merged], [*first, *second], txns={"f": 1}, data_change=False)
    table.commit((), [merged], txns={"e": 3})
    added = table.added_since(0)
    assert added is not None
    assert [(a.version, a.files, a.txns, a.removed_rows) for a in added] == [
        (1, first, {"e": 1}, False),
        (2, second, {"e": 2}, False),
        (3, (), {"f": 1}, False),
        (4, (), {"e": 3}, True),
    ]
    assert table.added_since(3) == added[3:]
    assert table.added_since(4) == []


def a_checkpoint_changes_nothing_that_is_read(make: MakeTables) -> None:
    """Files with tags and statistics, numbers, words: as before, also for who opens it anew."""
    tables = make(_clock())
    table = tables.create(NAME, SCHEMA)
    for n, checkpointed in enumerate([False, True] * 4):
        file = tables.stage(NAME, _rows(n, n + 1), tags={"n": str(n)} if n % 3 else {})
        gone = table.snapshot.files[: n % 2]
        table.commit([file], gone, txns={"e": n, f"e{n}": n}, metadata={"n": str(n)})
        if checkpointed:
            table.checkpoint(3600)
        assert _unordered(_snapshot(make(_clock()))) == _unordered(table.snapshot)
    table.checkpoint(0)
    assert make(_clock()).snapshot(NAME, 3) is None
    assert _sorted(tables.read(_snapshot(make(_clock())))) == _sorted(tables.read(table.snapshot))


def the_log_is_kept_as_long_as_asked(make: MakeTables) -> None:
    """What is younger than `keep_log_s` can still be followed and read."""
    clock = _clock()
    tables = make(clock)
    table = tables.create(NAME, SCHEMA)
    for n in range(6):
        _append(tables, table, n, n + 1)
        table.checkpoint(60)
        clock.advance(30)
    added = table.added_since(4)
    assert added is not None
    assert [a.version for a in added] == [5, 6]
    assert table.added_since(2) is None
    assert _sorted(tables.read(_snapshot(tables, 4))) == _rows(0, 4)


def clean_up_spares_what_is_needed(make: MakeTables) -> None:
    """It deletes files that no version kept names, and orphans, if they are old enough."""
    clock = _clock()
    tables = make(clock)
    table = tables.create(NAME, SCHEMA)
    old = _append(tables, table, 0, 2)
    orphan = tables.stage(NAME, _rows(50, 60))
    clock.advance(10)
    rewritten = tables.stage(NAME, _rows(0, 2))
    new = table.commit([rewritten], old.files, data_change=False)
    young = tables.stage(NAME, _rows(60, 70))
    clock.advance(10)
    before_us = clock.now_us() - 5_000_000
    assert table.clean(before_us - 10_000_000, keep_version=old.version) == 1
    assert _is_error(lambda: tables.read(new, [orphan]))
    assert table.clean(before_us, keep_version=old.version) == 1
    assert _is_error(lambda: tables.read(new, [young]))
    assert tables.read(old) == tables.read(new)
    assert table.clean(before_us, keep_version=new.version) == 1
    assert _is_error(lambda: tables.read(old))
    assert tables.read(new) == _rows(0, 2)
    late = tables.stage(NAME, _rows(2, 3))
    assert table.clean(before_us, keep_version=new.version) == 0
    assert tables.read(table.commit([late])) == _rows(0, 3)


def clean_up_after_a_restart_spares_the_same(make: MakeTables) -> None:
    """Opened anew from a checkpoint, it deletes nothing that an earlier version still names."""
    clock = _clock()
    tables = make(clock)
    table = tables.create(NAME, SCHEMA)
    old = _append(tables, table, 0, 2)
    table.checkpoint(3600)
    new = table.commit([tables.stage(NAME, _rows(0, 2))], old.files, data_change=False)
    table.checkpoint(3600)
    clock.advance(10_000)
    again = _opened(make(clock))
    assert again.clean(clock.now_us(), keep_version=old.version) == 0
    assert tables.read(old) == _rows(0, 2)
    assert again.clean(clock.now_us(), keep_version=new.version) == 1
    assert tables.read(new) == _rows(0, 2)


def a_dropped_table_is_gone(make: MakeTables) -> None:
    """Made again it has another id and its own rows, also for a reader that knew the first."""
    tables, reader = make(_clock()), make(_clock())
    first = tables.create(NAME, SCHEMA)
    _append(tables, first, 0, 5)
    known = _snapshot(reader)
    tables.drop(NAME)
    assert tables.names() == []
    assert reader.snapshot(NAME) is None
    assert _is_fenced(lambda: first.commit([DataFile("part-x.parquet", 1, 1)]))
    assert tables.snapshot(NAME) is None
    second = tables.create(NAME, SCHEMA)
    snapshot = _append(tables, second, 7, 8)
    assert snapshot.table_id != known.table_id
    assert reader.snapshot(NAME) == snapshot
    assert reader.read(snapshot) == _rows(7, 8)


GUARANTEES: tuple[Callable[[MakeTables], None], ...] = (
    a_table_that_is_not_there_is_none,
    a_new_table_is_empty_at_version_0,
    a_table_is_created_once,
    what_is_staged_is_invisible,
    a_commit_is_what_another_reads,
    every_type_comes_back,
    what_cannot_be_stored_is_refused,
    a_stream_is_staged_as_one_file,
    a_reader_sees_each_version,
    files_are_replaced_in_one_commit,
    one_of_two_owners_wins,
    two_owners_racing_have_one_winner_a_version,
    a_stalled_owner_is_fenced_after_log_cleanup,
    columns_are_only_added,
    additions_are_followed,
    a_checkpoint_changes_nothing_that_is_read,
    the_log_is_kept_as_long_as_asked,
    clean_up_spares_what_is_needed,
    clean_up_after_a_restart_spares_the_same,
    a_dropped_table_is_gone,
)
"""Every guarantee, to be run over each implementation."""


def _clock() -> ManualClock:
    """Return a clock whose ids are its own, as those of two processes are."""
    return ManualClock(seed=next(_SEEDS))


def _rows(start: int, end: int) -> pa.Table:
    numbers = list(range(start, end))
    words = [f"word {n}" if n % 7 else None for n in numbers]
    times = pa.array([n * 1_000_003 for n in numbers], SCHEMA.field("at").type)
    return pa.Table.from_arrays(
        [pa.array(numbers, pa.int64()), pa.array(words), times], schema=SCHEMA
    )


def _wide_row(n: int) -> dict[str, object]:
    if n % 3 == 0:
        return {"required": n}
    return {
        "required": n,
        "byte": -n,
        "short": n * 1000,
        "integer": n * 100_000_000,
        "float": n / 4,
        "double": n / 3,
        "boolean": n % 2 == 0,
        "date": pa.scalar(n - 5, pa.date32()).as_py(),
        "decimal": Decimal(n) ** 33 * (-1) ** n / 1_000_000,
        "binary": bytes([n, 0, 255]),
        "list": ["a", None, "é" * n],
        "map": [("k", n), ("l", None)],
        "struct": {"a": n, "b": [True, None]} if n % 2 else None,
    }


def _append(
    tables: Tables,
    table: Table,
    start: int,
    end: int,
    *,
    txns: dict[str, int] | None = None,
    metadata: dict[str, str] | None = None,
) -> Snapshot:
    file = tables.stage(NAME, _rows(start, end))
    return table.commit([file], txns=txns, metadata=metadata)


def _race(barrier: threading.Barrier, owner: Table, file: DataFile, won: list[Snapshot]) -> None:
    barrier.wait()
    with suppress(Fenced):
        won.append(owner.commit([file]))


def _opened(tables: Tables) -> Table:
    table = tables.open(NAME)
    assert table is not None
    return table


def _snapshot(tables: Tables, version: int | None = None) -> Snapshot:
    snapshot = tables.snapshot(NAME, version)
    assert snapshot is not None
    return snapshot


def _sorted(rows: pa.Table) -> pa.Table:
    return rows.sort_by("number").combine_chunks()


def _unordered(snapshot: Snapshot) -> tuple[object, ...]:
    files = sorted(snapshot.files, key=lambda f: f.path)
    return (snapshot.version, files, snapshot.txns, snapshot.metadata, snapshot.schema)


def _is_fenced(act: Callable[[], object]) -> bool:
    return isinstance(_error_of(act), Fenced)


def _is_invalid(act: Callable[[], object]) -> bool:
    return isinstance(_error_of(act), Invalid)


def _is_error(act: Callable[[], object]) -> bool:
    return _error_of(act) is not None


def _error_of(act: Callable[[], object]) -> HeadraceError | None:
    try:
        act()
    except HeadraceError as e:
        return e
    return None
