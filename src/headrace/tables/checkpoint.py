"""Checkpoints, and only after them the clean-up of the log.

A checkpoint says in one Parquet file what all commits up to a version say together, so that readers
need not read these. We write it from what the owner holds in memory, durable before it has its
name. `deltalake` can write one too, but reads the log again for it while commits wait, and syncs
nothing, so that a power cut can leave a checkpoint that stops every reader. Source
of the columns: Delta protocol, "Checkpoint Schema".
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.model.failpoint import failpoint
from headrace.model.tables import Snapshot
from headrace.tables import log_entries, log_state, parquet
from headrace.tables.log_entries import LastCheckpoint, MetaData
from headrace.tables.schema import to_delta
from headrace.tables.storage import Storage

_WORDS = pa.map_(pa.string(), pa.string())


def _must(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_SCHEMA = pa.schema(
    [
        (
            "txn",
            pa.struct(
                [
                    _must("appId", pa.string()),
                    _must("version", pa.int64()),
                    ("lastUpdated", pa.int64()),
                ]
            ),
        ),
        (
            "add",
            pa.struct(
                [
                    _must("path", pa.string()),
                    _must("partitionValues", _WORDS),
                    _must("size", pa.int64()),
                    _must("modificationTime", pa.int64()),
                    _must("dataChange", pa.bool_()),
                    ("stats", pa.string()),
                    ("tags", _WORDS),
                ]
            ),
        ),
        (
            "remove",
            pa.struct(
                [
                    _must("path", pa.string()),
                    ("deletionTimestamp", pa.int64()),
                    _must("dataChange", pa.bool_()),
                ]
            ),
        ),
        (
            "metaData",
            pa.struct(
                [
                    _must("id", pa.string()),
                    ("name", pa.string()),
                    ("description", pa.string()),
                    _must(
                        "format",
                        pa.struct([_must("provider", pa.string()), _must("options", _WORDS)]),
                    ),
                    _must("schemaString", pa.string()),
                    _must("partitionColumns", pa.list_(pa.string())),
                    _must("configuration", _WORDS),
                    ("createdTime", pa.int64()),
                ]
            ),
        ),
        (
            "protocol",
            pa.struct(
                [_must("minReaderVersion", pa.int32()), _must("minWriterVersion", pa.int32())]
            ),
        ),
    ]
)


def write(
    storage: Storage, snapshot: Snapshot, meta_data: MetaData, removed: Mapping[str, int]
) -> None:
    """Checkpoint a version that has been committed, unless that was done before.

    `removed` has files taken out not long ago, and when, in microseconds.

    The order of effects:
    1. write the checkpoint, durable before it has its name;
    2. let `_last_checkpoint` name it.
    """
    name, version = snapshot.name, snapshot.version
    newest = log_state.last_checkpoint(storage, name)
    if newest is not None and newest >= version:
        return
    lines = _lines(snapshot, meta_data, removed)
    sink = pa.BufferOutputStream()
    rows = pa.Table.from_pylist(lines, schema=_SCHEMA)
    pq.write_table(rows, sink, compression="zstd", store_schema=False)
    data = sink.getvalue().to_pybytes()
    storage.put(log_entries.checkpoint_path(name, version), data)  # 1
    failpoint("checkpoint.1")
    words = LastCheckpoint(
        version=version,
        size=len(lines),
        size_in_bytes=len(data),
        num_of_add_files=len(snapshot.files),
    )
    storage.put(log_entries.last_checkpoint_path(name), msgspec.json.encode(words))  # 2
    failpoint("checkpoint.2")


def _lines(
    snapshot: Snapshot, meta_data: MetaData, removed: Mapping[str, int]
) -> list[dict[str, object]]:
    described = msgspec.structs.replace(meta_data, schema_string=to_delta(snapshot.schema))
    protocol = log_entries.Protocol(log_entries.READER_VERSION, log_entries.WRITER_VERSION)
    return [
        {"protocol": msgspec.to_builtins(protocol)},
        {"metaData": msgspec.to_builtins(described)},
        *({"txn": {"appId": app, "version": n}} for app, n in snapshot.txns.items()),
        *(
            {"remove": {"path": p, "deletionTimestamp": us // 1000, "dataChange": False}}
            for p, us in removed.items()
        ),
        *(
            {
                "add": {
                    "path": f.path,
                    "partitionValues": {},
                    "size": f.size_bytes,
                    "modificationTime": (parquet.made_at_us(f.path) or 0) // 1000,
                    "dataChange": False,
                    "stats": f.stats,
                    "tags": f.tags or None,
                }
            }
            for f in snapshot.files
        ),
    ]


def clean_log(storage: Storage, name: str, *, before_ms: int) -> int:
    """Remove the log up to the newest checkpoint whose commit is older; return how much it was.

    Every version from that checkpoint on can still be read. The oldest entry goes first, so what
    is left of an interrupted clean-up has no hole.
    """
    commits, checkpoints = log_state.list_log(storage, name)
    keep_from = _newest_before(storage, name, checkpoints, before_ms)
    if keep_from is None:
        return 0
    stale = [log_entries.commit_path(name, v) for v in commits if v < keep_from]
    stale += [log_entries.checkpoint_path(name, v) for v in checkpoints if v < keep_from]
    for position, path in enumerate(sorted(stale)):
        storage.delete(path)
        if position == len(stale) // 2:
            failpoint("checkpoint.3")
    return len(stale)


def _newest_before(
    storage: Storage, name: str, checkpoints: list[int], before_ms: int
) -> int | None:
    durable = log_state.last_checkpoint(storage, name)
    for version in reversed(checkpoints):
        if durable is None or version > durable:
            continue
        entries = log_state.read_commit(storage, name, version) or []
        infos = [e.commit_info for e in entries if e.commit_info is not None]
        if infos and (infos[0].timestamp or 0) <= before_ms:
            return version
    return None
