"""Trino answers what docs/engines/trino.md asks, over tables that a run is writing meanwhile."""

from __future__ import annotations

import contextlib
import re

import pytest
import trino
from live_game import playing, put_table
from pages import blocks, statements

from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.testing.object_server import object_server
from headrace.testing.sql_server import TRINO, installed, sql_server

SQL = blocks("trino.md", "sql")
CATALOGS = blocks("trino.md", "properties")
QUESTIONS = (
    "requests and acceptances",
    "the view",
    "hosts",
    "accepted by host",
    "kingdoms",
    "partitions",
)
LOCATION = re.compile(r"table_name => '(\w+)',\s+table_location => 'local:///game-data/([^']+)'")
NAMES = dict(LOCATION.findall(SQL["register"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page calls /srv."""
    return tmp_path_factory.mktemp("srv")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A server of S3 with its keys in the environment; None where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            folder = tmp_path_factory.mktemp("s3")
            running = stack.enter_context(object_server(folder, SystemClock()))
        except Unavailable:
            yield None
            return
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in running.environment().items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def server(folder, bucket, tmp_path_factory):
    try:
        found = installed(TRINO)
    except Unavailable as e:
        pytest.skip(str(e))
    catalogs = {"delta": CATALOGS["delta.properties"].replace("/srv", str(folder))}
    if bucket is not None:
        told = CATALOGS["lake.properties"]
        catalogs["lake"] = told.replace("http://127.0.0.1:7070", bucket.endpoint)
    own = tmp_path_factory.mktemp("trino")
    with sql_server(found, catalogs, own, SystemClock()) as url:
        yield url


@pytest.fixture(scope="module")
def ask(server):
    host, _, port = server.removeprefix("http://").partition(":")
    with trino.dbapi.connect(host=host, port=int(port), user="me", catalog="delta") as connection:
        yield lambda statement: connection.cursor().execute(statement).fetchall()


@pytest.fixture(scope="module")
def ours(folder, ask):
    """Our own answers, while the game is played until the last test has ended."""
    with playing(folder, NAMES) as ours:
        for statement in statements(SQL["register"]):
            ask(statement)
        yield ours


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_old_question(name, ours, ask):
    ours.true_version(SQL[name], ask)


def test_counts_are_never_torn(ours, ask):
    counting = "SELECT count(*), count(DISTINCT event_id), max(_offset) FROM game.messages"
    ours.never_torn(counting, ask)


def test_earlier_versions(ours, ask):
    listed = ask(SQL["versions"])
    newest = listed[0][0]
    assert [version for version, _ in listed] == list(range(newest, newest - len(listed), -1))
    statement = SQL["as of a version"]
    assert ask(statement) == ask(statement)
    plain, version = statement.split(" FOR VERSION AS OF ")
    assert [tuple(row) for row in ask(statement)] == ours.answer(plain, int(version))


def test_a_table_on_s3(ours, ask, bucket, folder):
    if bucket is None:
        pytest.skip("no S3 server can be run here")
    name = NAMES["request_group"]
    put_table(bucket, folder / "game-data" / name, f"game/{name}")
    for statement in statements(SQL["register on s3"]):
        ask(statement)
    (version,) = ask('SELECT max(version) FROM lake.game."request_group$history"')[0]
    asked = SQL["hosts"].replace("game.request_group", "lake.game.request_group")
    assert [tuple(row) for row in ask(asked)] == ours.answer(SQL["hosts"], version)


def test_the_python_client(ours, server):
    ((_, code),) = blocks("trino.md", "python").items()
    names = {}
    first = ours.version("request_group")
    exec(code.replace("8080", server.rpartition(":")[2]), names)
    last = ours.version("request_group")
    counting = "SELECT count(*) FROM game.request_group"
    assert [(names["requests"],)] in [ours.answer(counting, v) for v in range(first, last + 1)]


def test_a_table_is_forgotten_and_known_again(ours, ask, folder):
    files = folder / "game-data" / NAMES["group_requests"]
    ask(SQL["forget"])
    assert any(files.glob("*.parquet"))
    with pytest.raises(trino.exceptions.TrinoUserError, match=r"group_requests.* does not exist"):
        ask(SQL["the view"])
    (again,) = [s for s in statements(SQL["register"]) if "group_requests" in s]
    ask(again)
    ours.true_version(SQL["the view"], ask)


def test_every_statement_of_the_page_is_asked():
    others = {"register", "register on s3", "versions", "as of a version", "forget"}
    assert set(SQL) == others | set(QUESTIONS)
