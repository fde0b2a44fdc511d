"""Presto answers what docs/engines/presto.md asks, over tables that a run is writing meanwhile.

Only with HEADRACE_TEST_PRESTO=1: the first time it downloads 2.1 GB.
"""

from __future__ import annotations

import os
import re

import httpx2
import pytest
from live_game import EARLIER, playing
from pages import blocks, statements

from headrace.model.clock import SystemClock
from headrace.testing.sql_server import PRESTO, installed, sql_server

pytestmark = pytest.mark.skipif(
    os.environ.get("HEADRACE_TEST_PRESTO") != "1",
    reason="Presto is tried by HEADRACE_TEST_PRESTO=1, for it takes 2.1 GB to download",
)
SQL = blocks("presto.md", "sql")
CATALOGS = blocks("presto.md", "properties")
QUESTIONS = (
    "requests and acceptances",
    "the view",
    "hosts",
    "accepted by host",
    "kingdoms",
    "partitions",
)
LOCATION = re.compile(
    r"game\.(\w+) \(dummy int\)\s+WITH \(external_location = 'file:///srv/game-data/([^']+)'\)"
)
NAMES = dict(LOCATION.findall(SQL["register"]))
ASKING = {"X-Presto-User": "me", "X-Presto-Catalog": "delta"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page calls /srv."""
    return tmp_path_factory.mktemp("srv")


@pytest.fixture(scope="module")
def ask(folder, tmp_path_factory):
    """Ask by Presto's own protocol: its Python client is no longer kept."""
    catalogs = {
        name.removesuffix(".properties"): text.replace("/srv", str(folder))
        for name, text in CATALOGS.items()
    }
    own = tmp_path_factory.mktemp("presto")
    with (
        sql_server(installed(PRESTO), catalogs, own, SystemClock()) as url,
        httpx2.Client(headers=ASKING, timeout=60) as client,
    ):

        def ask(statement):
            said = statement.replace("/srv", str(folder))
            answer = client.post(f"{url}/v1/statement", content=said).raise_for_status().json()
            rows = answer.get("data", [])
            while "nextUri" in answer:
                answer = client.get(answer["nextUri"]).raise_for_status().json()
                rows += answer.get("data", [])
            assert "error" not in answer, (statement, answer["error"]["message"])
            return rows

        yield ask


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
    ours.never_torn(
        "SELECT count(*), count(DISTINCT event_id), max(_offset) FROM game.messages", ask
    )


def test_a_table_by_its_path(ours, ask):
    counting = "SELECT count(*) FROM game.request_group"
    ours.true_version(counting, lambda _: ask(SQL["by path"]))


def test_an_earlier_version(ours, ask):
    ((counted,),) = ask(SQL["as of a version"])
    assert [(counted,)] == ours.answer("SELECT count(*) FROM game.messages", EARLIER)


def test_a_table_is_forgotten_and_known_again(ours, ask, folder):
    files = folder / "game-data" / NAMES["group_requests"]
    ask(SQL["forget"])
    assert any(files.glob("*.parquet"))
    with pytest.raises(AssertionError, match=r"group_requests.* does not exist"):
        ask(SQL["the view"])
    (again,) = [s for s in statements(SQL["register"]) if "group_requests" in s]
    ask(again)
    ours.true_version(SQL["the view"], ask)


def test_every_statement_of_the_page_is_asked():
    assert set(SQL) == {*QUESTIONS, "register", "by path", "as of a version", "forget"}
