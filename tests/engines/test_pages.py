"""The pages of docs/engines: each statement, run as it stands there, answers what was sent.

Trino's, Presto's and Spark's pages have tests of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from live_game import Sent, put_table, write_pipeline
from pages import PAGES, blocks

from headrace.model.errors import Unavailable
from headrace.testing.kit import PipelineKit
from headrace.testing.sql_server import packages

CHDB = "chdb-core==26.9.0"
TURNS, EARLIER = 10, 3
ANSWERS = ("asked", "hosts", "kingdoms", "partitions", "earlier")
CHDB_PROGRAM = """
import json, sys
for name, statement in json.load(sys.stdin).items():
    print(json.dumps(name))
"""


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """A game that was played: the folder that pages call /srv/game-data, and what was sent."""
    sent = Sent()
    with PipelineKit.of_file(write_pipeline(tmp_path_factory.mktemp("game"))) as kit:
        for turn in range(TURNS):
            for topic, records in sent.turn(turn).items():
                kit.send(topic, *records)
            kit.settle()
        partitions = Counter(row["_partition"] for row in kit.rows("MessageHistory", "_partition"))
        wanted = {
            "asked": sorted(sent.by_type().items()),
            "hosts": sorted((h, len(a), len(set(a))) for h, a in sent.asked_by_host().items()),
            "kingdoms": sorted(sent.by_kingdom().items()),
            "partitions": sorted(partitions.items()),
            "earlier": sent.messages_until(EARLIER),
        }
        assert sum(partitions.values()) == len(sent.messages)
        yield SimpleNamespace(folder=str(kit.folder), wanted=wanted)


def run_blocks(page, game):
    """Run a page's Python in its order; return all that it has given a name."""
    found = {}
    for name, code in blocks(page, "python").items():
        if name != "on s3":
            exec(code.replace("/srv/game-data", game.folder), found)
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_polars(name, game, polars_page):
    found = polars_page[name]
    assert (found if name == "earlier" else found.rows()) == game.wanted[name]


@pytest.fixture(scope="module")
def polars_page(game):
    return run_blocks("polars.md", game)


@pytest.mark.parametrize("name", ANSWERS)
def test_pandas(name, game, pandas_page):
    found = pandas_page[name]
    if name == "hosts":
        found = list(found.itertuples(name=None))
    elif name != "earlier":
        found = list(found.items())
    assert found == game.wanted[name]


@pytest.fixture(scope="module")
def pandas_page(game):
    return run_blocks("pandas.md", game)


def test_what_is_opened_through_headrace(game, polars_page, pandas_page):
    by_type = dict(game.wanted["asked"])
    row = tuple(by_type[t] for t in ("request_group", "accept_member", "decline_member"))
    assert polars_page["opened"].rows() == [(*row, 3)]
    assert list(pandas_page["opened"].itertuples(index=False, name=None)) == [(*row, 3)]


def test_a_lazy_frame_of_polars_reads_what_is_newest(tmp_path):
    write_deltalake(tmp_path, pa.table({"n": [1]}))
    lazy = pl.scan_delta(tmp_path)
    write_deltalake(tmp_path, pa.table({"n": [2]}), mode="append")
    assert lazy.collect().height == 2


def test_duckdb(game):
    found = run_blocks("duckdb.md", game)
    assert {name: found[name] for name in ANSWERS} == game.wanted


def test_duckdbs_extension(game):
    ((_, statement),) = blocks("duckdb.md", "sql").items()
    with duckdb.connect() as connection:
        connection.execute("SET autoinstall_known_extensions = false")
        try:
            connection.execute("LOAD delta")
        except duckdb.Error as e:
            pytest.skip(f"DuckDB's delta extension is not installed: {str(e).splitlines()[0]}")
        rows = connection.execute(statement.replace("/srv/game-data", game.folder)).fetchall()
    assert rows == [(dict(game.wanted["asked"])["request_group"],)]


def test_clickhouse(game):
    asked = blocks("clickhouse.md", "sql")
    asked = {n: s.replace("/srv/game-data", game.folder) for n, s in asked.items() if n != "on s3"}
    wanted = game.wanted | {"earlier": [(game.wanted["earlier"],)]}
    assert ask_clickhouse(asked, game.folder) == wanted


def test_tables_on_s3(game, s3, s3_environment):
    put_table(s3, Path(game.folder) / "tables" / "request_group", "game/tables/request_group")
    for page in ("polars.md", "pandas.md"):
        python = blocks(page, "python")
        found = {}
        exec(f"{python['tables']}\n{python['on s3']}".replace("/srv/game-data", game.folder), found)
        assert found["on_s3"] == dict(game.wanted["asked"])["request_group"]


def test_clickhouse_on_s3(game, s3):
    put_table(s3, Path(game.folder) / "tables" / "request_group", "clickhouse")
    options = s3.options()
    statement = blocks("clickhouse.md", "sql")["on s3"]
    for said, there in (
        ("http://127.0.0.1:7070", options["endpoint"]),
        ("game/tables/request_group", "clickhouse"),
        ("key id", options["access_key_id"]),
        ("secret key", options["secret_access_key"]),
    ):
        assert said in statement
        statement = statement.replace(said, there)
    found = ask_clickhouse({"n": statement}, game.folder)
    assert found == {"n": [(dict(game.wanted["asked"])["request_group"],)]}


def ask_clickhouse(statements, folder):
    """Return the rows that the page's client gives for each statement, in a folder."""
    try:
        library = packages(CHDB)
    except Unavailable as e:
        pytest.skip(str(e))
    ((_, client),) = blocks("clickhouse.md", "python").items()
    # In a process of its own, for it brings much code that need not agree with what is here.
    told = subprocess.run(
        [sys.executable, "-c", CHDB_PROGRAM + textwrap.indent(client, "    ")],
        input=json.dumps(statements),
        cwd=folder,
        env={"PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    found = {}
    for line in map(json.loads, filter(None, told.stdout.splitlines())):
        if isinstance(line, str):
            found[line] = rows = []
        else:
            rows.append(tuple(line))
    return found


def test_every_page_is_linked():
    index = (PAGES / "README.md").read_text()
    pages = {page.name for page in PAGES.glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
