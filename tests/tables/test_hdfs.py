"""Every guarantee of table storage over a real HDFS, and what happens when it is away."""

from __future__ import annotations

import itertools
import os

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from table_writer import EPOCH, NAME, ROWS, SCHEMA, rows_of

from headrace.app.samples import SamplesTable
from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced, Invalid, Unavailable
from headrace.model.samples import SAMPLE_SCHEMA, SAMPLES
from headrace.tables.delta import DeltaTables
from headrace.testing.hdfs_server import hdfs_server
from headrace.testing.tables_suite import GUARANTEES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first test may download Hadoop
    pytest.mark.skipif(
        "HEADRACE_TEST_HDFS" not in os.environ,
        reason="a durable put to HDFS takes long: HEADRACE_TEST_HDFS=1 runs these two minutes",
    ),
]
FOLDERS = itertools.count()


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory):
    try:
        with hdfs_server(tmp_path_factory.mktemp("hdfs"), SystemClock()) as url:
            yield url
    except Unavailable as e:
        pytest.skip(str(e))


@pytest.fixture
def place(hdfs):
    return f"{hdfs}/deep/{next(FOLDERS)}"


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_hdfs_keeps(guarantee, place):
    guarantee(lambda clock: DeltaTables(place, clock))


def test_deltalake_reads_what_we_wrote(place):
    tables = DeltaTables(place, SystemClock())
    table = tables.create(NAME, SCHEMA)
    for epoch in range(3):
        table.commit([tables.stage(NAME, rows_of(epoch))], txns={EPOCH: epoch})
    table.checkpoint(0)
    found = DeltaTable(table.snapshot.root)
    assert (found.version(), found.transaction_version(EPOCH)) == (3, 2)
    assert found.to_pyarrow_table().num_rows == 3 * ROWS


def test_a_rename_whose_answer_is_lost_is_ours(place, monkeypatch):
    tables = DeltaTables(place, SystemClock())
    table = tables.create(NAME, SCHEMA)
    client = tables.storage._client
    rename = client.rename

    def lose_answer(source, target, *, overwrite=False):
        rename(source, target, overwrite=overwrite)
        raise OSError("connection reset")

    monkeypatch.setattr(client, "rename", lose_answer)
    assert table.commit([tables.stage(NAME, rows_of(0))]).version == 1
    other = DeltaTables(place, SystemClock()).open(NAME)
    assert other.commit([tables.stage(NAME, rows_of(1))]).version == 2
    with pytest.raises(Fenced):
        table.commit([tables.stage(NAME, rows_of(2))])


def test_a_name_node_that_is_away_is_unavailable():
    with pytest.raises(Unavailable):
        DeltaTables("hdfs://127.0.0.1:9/p", SystemClock())


@pytest.mark.parametrize("url", ["hdfs://", "hdfs://host:1", "hdfs:///p"])
def test_a_url_that_names_no_folder_is_invalid(url):
    with pytest.raises(Invalid):
        DeltaTables(url, SystemClock())


def test_two_nodes_append_samples_in_turn(place):
    clock = SystemClock()
    nodes = [
        SamplesTable(DeltaTables(place, clock), clock, keep_s=3600, is_shared=True)
        for _ in range(2)
    ]
    for number in range(6):
        node = nodes[number % 2]
        row = [{"sampled_at": clock.now_us(), "node": "n", "pid": number}]
        node.commit(node.stage(pa.Table.from_pylist(row, schema=SAMPLE_SCHEMA)))
    tables = DeltaTables(place, clock)
    found = tables.read(tables.snapshot(SAMPLES))
    assert sorted(found.column("pid").to_pylist()) == list(range(6))
