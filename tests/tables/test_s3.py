"""Tables on a real S3 server: every guarantee, killed and stopped owners, and other readers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from table_writer import EPOCH, NAME, ROWS, SCHEMA, main, rows_of, verify

from headrace.app.samples import SamplesTable
from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced
from headrace.model.failpoint import FAILPOINTS
from headrace.model.samples import SAMPLE_SCHEMA, SAMPLES
from headrace.tables.compact import compact
from headrace.tables.delta import DeltaTables
from headrace.tables.objects import ObjectStorage
from headrace.testing.tables_suite import GUARANTEES

pytestmark = pytest.mark.timeout(900)  # the first test may build the server
HERE = Path(__file__).parent
EPOCHS = 7
POINTS = [p for p in FAILPOINTS if p.split(".")[0] in {"stage", "delta", "compact", "checkpoint"}]


@pytest.fixture
def tables(s3, url):
    return tables_at(url, s3)


def tables_at(url, s3, clock=None):
    clock = clock or SystemClock()
    return DeltaTables(url, clock, storage=ObjectStorage(url, clock, s3.options()))


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_s3_keeps(guarantee, s3, url):
    guarantee(lambda clock: tables_at(url, s3, clock))


def test_two_nodes_append_samples_at_once(s3, url):
    def work(node, first):
        for number in range(first, first + 8):
            row = [{"sampled_at": SystemClock().now_us(), "node": "n", "pid": number}]
            node.commit(node.stage(pa.Table.from_pylist(row, schema=SAMPLE_SCHEMA)))
        return node

    def node():
        return SamplesTable(tables_at(url, s3), SystemClock(), keep_s=3600, is_shared=True)

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(work, (node(), node()), (0, 8)))) == 2
    tables = tables_at(url, s3)
    found = tables.read(tables.snapshot(SAMPLES))
    assert sorted(found.column("pid").to_pylist()) == list(range(16))


def writer(url, s3, failpoint):
    """Start an owner in a process of its own that acts at a failpoint."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "table_writer.py"), url, str(EPOCHS)],
        env={**os.environ, **s3.environment(), "HEADRACE_FAILPOINT": failpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("point", [*(f"{p}:1" for p in POINTS), "delta.1:2", "delta.2:2"])
def test_killed_at(s3, url, s3_environment, point):
    out, err = (process := writer(url, s3, f"{point}=kill")).communicate()
    assert process.returncode == -9, err or "the failpoint was not reached"
    acknowledged = int(out.split()[-1]) if out else -1
    if acknowledged >= 0:
        # Others read it as it is, before any repair.
        read = DeltaTable(f"{url}/{NAME}").to_pyarrow_table().column("number").to_pylist()
        assert set(range((acknowledged + 1) * ROWS)) <= set(read)
        assert len(read) == len(set(read))
    last = verify(url)
    assert acknowledged <= last <= acknowledged + 1
    main(url, EPOCHS)
    assert verify(url) == EPOCHS - 1


@pytest.mark.parametrize("point", ["delta.1:3", "compact.1", "checkpoint.1", "checkpoint.3"])
def test_an_owner_stopped_while_another_goes_on_is_fenced_or_changes_nothing(
    s3, url, s3_environment, point
):
    stopped = writer(url, s3, f"{point}=stop")
    _, status = os.waitpid(stopped.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    main(url, EPOCHS)
    os.kill(stopped.pid, signal.SIGCONT)
    _, err = stopped.communicate()
    assert stopped.returncode == 1
    assert "Fenced" in err
    assert verify(url) == EPOCHS - 1


def test_a_drop_that_breaks_off_leaves_the_table_whole_or_gone(tables, monkeypatch):
    storage, delete = tables.storage, tables.storage.delete
    for checkpoint_keeping_s in (None, 3600, 0):
        for deletions in range(12):
            table = tables.create(NAME, SCHEMA)
            for epoch in range(3):
                table.commit([tables.stage(NAME, rows_of(epoch))], txns={EPOCH: epoch})
                if checkpoint_keeping_s is not None:
                    table.checkpoint(checkpoint_keeping_s)
            left = iter(range(deletions))

            def break_off(path, left=left):
                if next(left, None) is None:
                    raise ConnectionError
                delete(path)

            with monkeypatch.context() as patch:
                patch.setattr(storage, "delete", break_off)
                with contextlib.suppress(ConnectionError):
                    tables.drop(NAME)
            left_over = tables.snapshot(NAME)
            assert left_over == tables_at_same(tables).snapshot(NAME)
            if left_over is None:
                assert tables.names() == []
            else:
                assert tables.read(left_over).num_rows == 3 * ROWS
                tables.drop(NAME)


def tables_at_same(tables):
    """Return the same tables as another process finds them."""
    return DeltaTables("", SystemClock(), storage=tables.storage)


def test_an_owner_of_a_dropped_table_leaves_nothing_in_the_one_made_after_it(tables):
    zombie = tables.create(NAME, SCHEMA)
    for epoch in range(3):
        zombie.commit([tables.stage(NAME, rows_of(epoch))])
    tables.drop(NAME)
    table = tables.create(NAME, SCHEMA)
    with pytest.raises(Fenced):
        zombie.commit([tables.stage(NAME, rows_of(99))])
    for epoch in range(5):
        table.commit([tables.stage(NAME, rows_of(epoch))])
    assert tables.read(tables_at_same(tables).snapshot(NAME)).num_rows == 5 * ROWS


def test_a_file_of_many_parts_is_read_by_ranges(tables):
    # Rows that do not compress, of more than the size that is read in one request.
    noise = os.urandom(3 << 20)
    schema = pa.schema([("number", pa.int64()), ("noise", pa.binary())])
    batches = (
        pa.RecordBatch.from_pydict({"number": [n], "noise": [bytes([n]) + noise]}, schema=schema)
        for n in range(8)
    )
    file = tables.stage(NAME, pa.RecordBatchReader.from_batches(schema, batches))
    snapshot = tables.create(NAME, schema).commit([file])
    assert file.size_bytes > 16 << 20
    found = tables.read(snapshot)
    assert found.column("number").to_pylist() == list(range(8))
    assert found.column("noise")[7].as_py() == b"\x07" + noise


@pytest.mark.parametrize("stage", ["log", "checkpoint", "compacted"])
def test_others_read_what_we_wrote(tables, s3_environment, stage):
    table = tables.create(NAME, SCHEMA)
    for epoch in range(6):
        table.commit([tables.stage(NAME, rows_of(epoch))], txns={EPOCH: epoch})
    if stage == "compacted":
        compact(tables, table, table.snapshot.files[:5], txn="f")
    if stage != "log":
        table.checkpoint(0)
        table.clean(SystemClock().now_us(), table.snapshot.version)
    snapshot = table.snapshot
    expected = tables.read(snapshot).sort_by("number")
    assert expected.num_rows == 6 * ROWS
    found = DeltaTable(snapshot.root)
    assert (found.version(), found.transaction_version(EPOCH)) == (snapshot.version, 5)
    assert found.to_pyarrow_table().sort_by("number") == expected
    dataset = found.to_pyarrow_dataset()
    with duckdb.connect() as con:
        con.register("numbers", dataset)
        assert con.execute("SELECT count(*), max(word) FROM numbers").fetchone() == (18, "word 9")
    assert pl.scan_delta(snapshot.root).select(pl.len()).collect().item() == 18
    s3fs = pyarrow.fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], scheme="http")
    root = snapshot.root.removeprefix("s3://")
    pieces = [pq.read_table(f"{root}/{f.path}", filesystem=s3fs) for f in snapshot.files]
    assert pa.concat_tables(pieces).sort_by("number").to_pylist() == expected.to_pylist()
