"""The index of old rows is a cache: never believed further than its changelog bears it out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pyarrow as pa
import pytest

from headrace.model.errors import Unavailable
from headrace.process.key_index import KeyIndex
from headrace.stage.apply import ENTRIES

OF = "changelog/columns"


def entries(*rows: tuple[str, str, int]) -> pa.Table:
    keys, texts, epochs = zip(*rows, strict=True)
    arrays = [keys, [True] * len(rows), texts, epochs]
    return pa.table(dict(zip(ENTRIES.names, arrays, strict=True)), schema=ENTRIES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "held.db"


@pytest.fixture
def index(path: Path) -> Iterator[KeyIndex]:
    with closing(KeyIndex(path, OF)) as made:
        yield made


def test_what_was_put_is_found_after_it_is_opened_again(path: Path) -> None:
    rows = entries(("a", "1", 1), ("\N{GRINNING FACE}" * 100_000, "2", 1))
    with closing(KeyIndex(path, OF)) as index:
        index.put(rows, (3, 1))
    with closing(KeyIndex(path, OF)) as index:
        assert index.contained == (3, 1)
        assert index.find([*rows.column("key").to_pylist(), "b"]).sort_by("row") == rows
        assert index.find([]) == ENTRIES.empty_table()


def test_an_older_row_that_is_put_later_does_not_replace_a_newer_one(index: KeyIndex) -> None:
    index.put(entries(("a", "new", 5), ("b", "old", 1)), None)
    index.put(entries(("a", "old", 4), ("b", "new", 2)), (9, 5))
    found = {row["key"]: row["row"] for row in index.find(["a", "b"]).to_pylist()}
    assert found == {"a": "new", "b": "new"}


def test_entries_of_something_else_are_not_believed(path: Path) -> None:
    with closing(KeyIndex(path, OF)) as index:
        index.put(entries(("a", "1", 1)), (3, 1))
    with closing(KeyIndex(path, "changelog/other columns")) as index:
        assert index.contained is None


def test_an_index_that_is_only_made_in_part_contains_nothing(path: Path) -> None:
    with closing(KeyIndex(path, OF)) as index:
        index.put(entries(("a", "1", 1)), None)
    with closing(KeyIndex(path, OF)) as index:
        assert index.contained is None


@pytest.mark.parametrize("damage", ["no database", "an older format", "a damaged page"])
def test_a_file_that_cannot_be_read_is_made_again(path: Path, damage: str) -> None:
    with closing(KeyIndex(path, OF)) as index:
        index.put(entries(*((str(i), "x" * 100, 1) for i in range(1000))), (3, 1))
    if damage == "no database":
        path.write_bytes(b"something else" * 1000)
    elif damage == "an older format":
        with closing(apsw.Connection(str(path))) as db:
            db.execute("DROP TABLE contained; CREATE TABLE contained (of TEXT, version INTEGER)")
    else:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
    with closing(KeyIndex(path, OF)) as index:
        assert index.contained is None
        index.put(entries(("a", "1", 1)), (3, 1))
    with closing(KeyIndex(path, OF)) as index:
        assert index.contained == (3, 1)
        assert index.find(["a", "1"]).column("key").to_pylist() == ["a"]


def test_damage_that_is_met_later_is_mended_by_beginning_again(path: Path) -> None:
    rows = [(str(i), "x" * 100, 1) for i in range(100_000)]
    with closing(KeyIndex(path, OF)) as index:
        index.put(entries(*rows), (3, 1))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (1 << 20))
    with closing(KeyIndex(path, OF)) as index, pytest.raises(Unavailable, match="damaged"):
        index.find([key for key, _, _ in rows])
    with closing(KeyIndex(path, OF)) as index:
        assert index.contained is None


def test_what_it_contains_can_be_asked_while_it_is_in_use(index: KeyIndex) -> None:
    index.put(entries(("a", "1", 1)), (3, 1))
    began, go_on = threading.Event(), threading.Event()

    def hold(_row: object) -> int:
        began.set()
        go_on.wait(60)
        return 1

    index._db.create_scalar_function("hold", hold, 1)
    busy = threading.Thread(
        target=lambda: list(index._db.execute("SELECT hold(key) FROM entries")), daemon=True
    )
    busy.start()
    assert began.wait(60)
    try:
        assert index.contained == (3, 1)
    finally:
        go_on.set()
        busy.join()
