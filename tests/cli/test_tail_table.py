"""`headrace tail --table`: the console writer, beside whoever commits."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from headrace.app.data_directory import writing_log
from headrace.app.site import open_site
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.layout import Layout

SCHEMA = pa.schema([("name", pa.string()), ("n", pa.int64())])


class Writer:
    """Commits to a table as the owner of the directory would."""

    def __init__(self, layout):
        with writing_log(layout, SystemClock()) as log:
            log.create("any", 1)
        self._tables = open_site(layout, SystemClock()).tables()
        self._table = self._tables.create("tables/things", SCHEMA)

    def write(self, *names):
        rows = [{"name": name, "n": n} for n, name in enumerate(names)]
        file = self._tables.stage("tables/things", pa.Table.from_pylist(rows, SCHEMA))
        self._table.commit([file])


@pytest.fixture
def writer(headrace, tmp_path):
    return Writer(Layout.at(tmp_path / "data"))


def test_people_get_a_table_for_each_version(headrace, writer):
    writer.write("a", "\x1b[2Jb")
    ended = headrace("tail", "--table", "things", "--from", "beginning", "--exit")
    title, header, *rows = [line.split() for line in ended.out.splitlines() if line.strip()]
    assert title[:5] == ["things,", "version", "1:", "2", "rows"]
    assert (header, rows) == (["name", "n"], [["a", "0"], ["\\x1b[2Jb", "1"]])


def test_of_many_rows_people_see_the_newest_and_scripts_all(headrace, writer):
    names = [f"t{n}" for n in range(25)]
    writer.write(*names)
    asked = ("tail", "--table", "tables.things", "--from", "beginning", "--exit")
    shown = headrace(*asked).out
    assert ("t4 " in shown, "t5 " in shown, "t24 " in shown) == (False, True, True)
    assert "after 5 others" in shown
    assert "t0 " in headrace(*asked, "--rows", "25").out
    lines = headrace(*asked, "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": t, "n": n} for n, t in enumerate(names)
    ]
    assert len(headrace(*asked, "--json", "--count", "7").out.splitlines()) == 7


def test_it_begins_at_the_end_and_follows(headrace, writer, monkeypatch):
    """What is committed while it waits comes out; the clock's sleep is when that is."""
    writer.write("before")
    clock = ManualClock()
    clock.sleep = lambda _: writer.write("later")
    monkeypatch.setattr("headrace.app.cli.tail.SystemClock", lambda: clock)
    ended = headrace("tail", "--table", "things", "--json", "--count", "2")
    assert ended.out == '{"name":"later","n":0}\n' * 2


def test_ctrl_c_ends_it_without_a_word(headrace, writer, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    clock = ManualClock()
    clock.sleep = interrupted
    monkeypatch.setattr("headrace.app.cli.tail.SystemClock", lambda: clock)
    status, out, err = headrace("tail", "--table", "things")
    assert (status, out, err.strip()) == (130, "", "")


@pytest.mark.parametrize("more", [["any"], ["--meta"]], ids=" ".join)
def test_a_table_is_not_a_topic(more, headrace, writer):
    ended = headrace("tail", "--table", "things", *more)
    assert (ended.status, ended.out) == (1, "")
    assert "either a topic" in ended.err


def test_an_unknown_table_is_told_with_those_there_are(headrace, writer):
    ended = headrace("tail", "--table", "thing", "--exit")
    assert ended.status == 1
    assert "There is no table or view thing" in ended.err
    assert "tables.things" in ended.err


def test_columns_are_chosen_by_name(headrace, writer):
    writer.write("a")
    asked = ("tail", "--table", "things", "--from", "beginning", "--exit", "--columns")
    assert headrace(*asked, "n", "--json").out == '{"n":0}\n'
    ended = headrace(*asked, "n,m")
    assert ended.status == 1
    assert "things has no column m" in ended.err
