"""What object storage does when answers are lost, servers are away, or promises are not kept."""

from __future__ import annotations

import contextlib
import threading

import pytest
from table_writer import NAME, ROWS, SCHEMA, rows_of

from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced, Invalid, Unavailable
from headrace.tables import storage as local
from headrace.tables.delta import DeltaTables
from headrace.tables.objects import ObjectStorage
from headrace.testing.fault_proxy import fault_proxy

pytestmark = pytest.mark.timeout(900)  # the first test may build the server


@pytest.fixture
def proxy(s3):
    with fault_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def tables(s3, url, proxy):
    return tables_at(url, s3.options(proxy.endpoint))


def tables_at(url, options):
    clock = SystemClock()
    return DeltaTables(url, clock, storage=ObjectStorage(url, clock, options))


def commits_meet(proxy, fate, *, times=1000):
    """Let the next puts of commits meet a fate."""
    left = iter(range(times))
    proxy.judge = lambda method, path, _: (
        fate
        if method == "PUT" and path.endswith(".json") and next(left, None) is not None
        else "pass"
    )


@pytest.mark.parametrize("times", [1, 3, 1000])
def test_a_commit_whose_answer_is_lost_is_ours(tables, proxy, times):
    table = tables.create(NAME, SCHEMA)
    commits_meet(proxy, "lose answer", times=times)
    before = len(proxy.requests)
    snapshot = table.commit([tables.stage(NAME, rows_of(0))], txns={"e": 1})
    assert any(fate == "lose answer" for _, _, fate in proxy.requests[before:])
    proxy.judge = lambda *_: "pass"
    assert tables.open(NAME).snapshot == snapshot
    assert snapshot.version == 1
    assert table.commit([tables.stage(NAME, rows_of(1))]).version == 2
    assert tables.read(table.snapshot).num_rows == 2 * ROWS


def test_a_commit_that_equals_another_owners_byte_for_byte_is_not_ours(s3, url, tables, proxy):
    tables.create(NAME, SCHEMA)
    path = f"{NAME}/_delta_log/{1:020}.json"
    other = ObjectStorage(url, SystemClock(), s3.options())
    other.put_new(path, b"the same\n")
    with pytest.raises(Fenced):
        tables.storage.put_new(path, b"the same\n")
    commits_meet(proxy, "lose answer")
    with pytest.raises(Fenced):
        tables.storage.put_new(path, b"the same\n")


def test_of_two_owners_whose_answers_are_all_lost_one_wins(s3, url, proxy):
    owners = [tables_at(url, s3.options(proxy.endpoint)) for _ in range(2)]
    owners[0].create(NAME, SCHEMA)
    commits_meet(proxy, "lose answer")
    for n in range(3):
        opened = [tables.open(NAME) for tables in owners]
        staged = [tables.stage(NAME, rows_of(n)) for tables in owners]
        barrier, won = threading.Barrier(2), []

        def race(table, file, barrier=barrier, won=won):
            barrier.wait()
            with contextlib.suppress(Fenced):
                won.append(table.commit([file]).version)

        racers = [
            threading.Thread(target=race, args=pair) for pair in zip(opened, staged, strict=True)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won == [n + 1]
    assert owners[0].read(owners[0].snapshot(NAME)).num_rows == 3 * ROWS


def test_a_conflict_that_passes_is_tried_again(tables, proxy):
    """S3 answers 409 while another request for the name is under way, and has then made nothing."""
    table = tables.create(NAME, SCHEMA)
    commits_meet(proxy, 409, times=2)
    assert table.commit([tables.stage(NAME, rows_of(0))]).version == 1
    assert [fate for _, _, fate in proxy.requests].count(409) == 2


def test_a_server_that_is_away_is_unavailable_and_the_commit_can_be_made_again(tables, proxy):
    table = tables.create(NAME, SCHEMA)
    file = tables.stage(NAME, rows_of(0))
    proxy.judge = lambda *_: "lose request"
    for act in (
        lambda: table.commit([file]),
        lambda: tables.stage(NAME, rows_of(1)),
        lambda: tables.read(table.snapshot, [file]),
        lambda: tables.snapshot(NAME),
        tables.names,
    ):
        with pytest.raises(Unavailable):
            act()
    proxy.judge = lambda *_: "pass"
    assert table.refresh().version == 0
    assert tables.read(table.commit([file])).num_rows == ROWS


def test_a_server_that_is_overloaded_is_unavailable(tables, proxy):
    tables.create(NAME, SCHEMA)
    proxy.judge = lambda *_: 503
    with pytest.raises(Unavailable):
        tables.open(NAME)


def test_a_commit_of_unknown_outcome_is_found_by_whoever_opens_anew(tables, proxy):
    table = tables.create(NAME, SCHEMA)
    file = tables.stage(NAME, rows_of(0))
    fates = {"PUT": "lose answer"}
    proxy.judge = lambda method, *_: fates.get(method, "lose request")
    with pytest.raises(Unavailable):
        table.commit([file])
    proxy.judge = lambda *_: "pass"
    with pytest.raises(Fenced):
        table.commit([file])
    assert table.refresh().files == (file,)


def test_a_server_that_ignores_the_condition_is_refused_before_the_first_commit(tables, proxy):
    proxy.judge = lambda method, _, headers: (
        200 if method == "PUT" and "if-none-match" in headers else "pass"
    )
    for _ in range(2):
        with pytest.raises(Invalid) as refused:
            tables.create(NAME, SCHEMA)
        assert refused.value.code == "no_conditional_put"
    assert not [r for r in proxy.requests if "_delta_log" in r[1] and r[0] == "PUT"]


def test_reading_breaks_off_as_unavailable(s3, url, tables, proxy):
    table = tables.create(NAME, SCHEMA)
    snapshot = table.commit([tables.stage(NAME, rows_of(0))])
    proxy.judge = lambda method, path, _: (
        503 if method == "GET" and path.endswith(".parquet") else "pass"
    )
    with pytest.raises(Unavailable):
        tables.read(snapshot)
    proxy.judge = lambda *_: "pass"
    assert tables.read(snapshot).num_rows == ROWS


@pytest.mark.parametrize(
    ("bucket", "options", "word"),
    [
        ("nowhere", {}, "no bucket"),
        ("headrace", {"secret_access_key": "wrong"}, "may not be used"),
    ],
)
def test_what_is_set_wrong_is_said(s3, bucket, options, word):
    tables = tables_at(f"s3://{bucket}/p", {**s3.options(), **options})
    for act in (tables.names, lambda: tables.create(NAME, SCHEMA)):
        with pytest.raises(Invalid, match=word):
            act()


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gopher://a/b"])
def test_a_url_that_names_no_storage_is_invalid(url):
    with pytest.raises(Invalid, match="no storage URL"):
        DeltaTables(url, SystemClock())


def test_an_unknown_option_is_invalid():
    with pytest.raises(Invalid, match="bogus"):
        local.open_storage("s3://a/b", SystemClock(), {"bogus": "1"})


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name="obstore")

    monkeypatch.setattr(local.importlib, "import_module", missing)
    with pytest.raises(Invalid) as refused:
        DeltaTables("s3://a/b", SystemClock())
    assert "headrace[s3]" in refused.value.hint
