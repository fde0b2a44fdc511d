"""A table's log, read into memory: which files, numbers and schema a version has.

`load` reads the newest checkpoint and the commits after it; `advance` reads only commits that are
new. Both ask for version after version by name until one is missing, so their cost does not grow
with the number of commits that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.model.errors import Corrupt, Invalid
from headrace.model.tables import DataFile, Snapshot
from headrace.tables import log_entries
from headrace.tables.log_entries import Add, Entry, MetaData
from headrace.tables.schema import from_delta
from headrace.tables.storage import Storage

_CHECKPOINT_SUFFIX = ".checkpoint.parquet"
# Not all that `deltalake` writes: most of it is null, and reading it takes most of the time.
_CHECKPOINT_COLUMNS = [
    *("add." + m for m in ("path", "partitionValues", "size", "modificationTime", "dataChange")),
    *("add." + m for m in ("stats", "tags", "deletionVector")),
    *("remove." + m for m in ("path", "dataChange", "deletionTimestamp")),
    *("txn", "metaData", "protocol"),
]
_TRIES = 3
"""How often a log is read that another process cleans at the same moment."""
_NO_SCHEMA = pa.schema([])


class LogState:
    """A table at one version, as a value that moves on commit by commit.

    `removed` has for each file that was taken out the version that did so and when, in
    microseconds; of files taken out before `base_version`, where reading began, it only knows those
    that the checkpoint still lists, as if `base_version` had removed them.
    """

    def __init__(self, name: str, root: str) -> None:
        """Begin before version 0."""
        self.name = name
        self.root = root
        self.version = -1
        self.base_version = 0
        self.files: dict[str, DataFile] = {}
        self.removed: dict[str, tuple[int, int]] = {}
        self.txns: dict[str, int] = {}
        self.meta_data: MetaData | None = None
        self.schema = _NO_SCHEMA
        self.metadata: dict[str, str] = {}

    def apply(self, version: int, entries: list[Entry]) -> None:
        """Move to `version`, whose commit or checkpoint holds `entries`."""
        self.metadata = {}
        for entry in entries:
            if entry.add is not None:
                self.files[entry.add.path] = data_file(entry.add)
                self.removed.pop(entry.add.path, None)
            elif entry.remove is not None:
                self.files.pop(entry.remove.path, None)
                deleted_us = (entry.remove.deletion_timestamp or 0) * 1000
                self.removed[entry.remove.path] = (version, deleted_us)
            elif entry.txn is not None:
                self.txns[entry.txn.app_id] = entry.txn.version
            elif entry.commit_info is not None:
                self.metadata = user_metadata(entry.commit_info.user_metadata)
            elif entry.meta_data is not None:
                self.meta_data = entry.meta_data
                self.schema = from_delta(entry.meta_data.schema_string)
            elif entry.protocol is not None:
                _check_protocol(self.name, entry.protocol)
        self.version = version

    def snapshot(self) -> Snapshot:
        """Return the table at this version, as a value."""
        if self.meta_data is None:
            raise Corrupt(f"{self.name} has no schema in its log", hint="Restore the table")
        return Snapshot(
            name=self.name,
            root=self.root,
            table_id=self.meta_data.id,
            version=self.version,
            files=tuple(self.files.values()),
            txns=dict(self.txns),
            schema=self.schema,
            metadata=self.metadata,
        )


def load(storage: Storage, name: str, version: int | None = None) -> LogState | None:
    """Return a table's state at a version, or the newest; None if there is none or not any more.

    The newest checkpoint is found by listing, not by `_last_checkpoint`: an owner that stalled
    while it wrote one may have pointed that back to an older version. `Corrupt` if commits are
    missing.
    """
    for _ in range(_TRIES):
        commits, checkpoints = list_log(storage, name)
        state = LogState(name, storage.uri(name))
        if not storage.drops_at_once and is_remainder(commits, checkpoints):
            return None
        base = max((c for c in checkpoints if version is None or c <= version), default=None)
        if base is not None:
            if not storage.exists(log_entries.checkpoint_path(name, base)):
                continue
            state.apply(base, read_checkpoint(storage, name, base))
            state.base_version = base
            state.metadata = _metadata_of(storage, name, base)
        advance(storage, state, version)
        newest = max(commits, default=-1)
        if version is not None:
            return state if state.version == version else None
        if state.version >= newest:
            return state if state.version >= 0 else None
    raise Corrupt(
        f"Commits of {name} after version {state.version} are missing from its log",
        hint="Restore the table from a backup",
    )


def advance(storage: Storage, state: LogState, version: int | None = None) -> None:
    """Apply the commits after the state's version, up to `version` or the newest."""
    while version is None or state.version < version:
        entries = read_commit(storage, state.name, state.version + 1)
        if entries is None:
            return
        state.apply(state.version + 1, entries)


def read_commit(storage: Storage, name: str, version: int) -> list[Entry] | None:
    """Return the lines of a commit; None if there is no such commit, `Corrupt` if it is damaged."""
    path = log_entries.commit_path(name, version)
    data = storage.read(path)
    return None if data is None else log_entries.decode(path, data)


def read_checkpoint(storage: Storage, name: str, version: int) -> list[Entry]:
    """Return the lines of a checkpoint, files in the order of their names; `Corrupt` if damaged."""
    path = log_entries.checkpoint_path(name, version)
    try:
        with storage.open(path) as file:
            rows = pq.ParquetFile(file).read(columns=_CHECKPOINT_COLUMNS)
        entries = [
            msgspec.convert({kind: line}, Entry)
            for kind in rows.column_names
            for line in rows.column(kind).drop_null().to_pylist(maps_as_pydicts="strict")
        ]
    except (OSError, pa.ArrowException, msgspec.ValidationError) as e:
        raise Corrupt(f"{path} cannot be read: {e}", hint="Restart: start-up repairs it") from e
    return sorted(entries, key=lambda e: e.add.path if e.add else "")


def last_checkpoint(storage: Storage, name: str) -> int | None:
    """Return the version of the newest checkpoint, if there is one."""
    data = storage.read(log_entries.last_checkpoint_path(name))
    found = log_entries.decode_last_checkpoint(data)
    return None if found is None else found.version


def list_log(storage: Storage, name: str) -> tuple[list[int], list[int]]:
    """Return the versions of the commits and of the checkpoints that are kept, ascending."""
    commits, checkpoints = [], []
    for stored in storage.files(f"{name}/{log_entries.LOG}"):
        stem, _, kind = stored.name.partition(".")
        if stem.isdecimal() and kind == "json":
            commits.append(int(stem))
        elif stem.isdecimal() and f".{kind}" == _CHECKPOINT_SUFFIX:
            checkpoints.append(int(stem))
    return commits, checkpoints


def is_remainder(commits: Sequence[int], checkpoints: Sequence[int]) -> bool:
    """Return whether a log is what an unfinished drop leaves, or nothing: it has no beginning."""
    return not checkpoints and (not commits or commits[0] > 0)


def take_apart(storage: Storage, name: str) -> None:
    """Remove a table's log entry by entry, so that it is whole or gone whenever that breaks off.

    Without the checkpoints it is whole as long as its commits reach back to version 0, and gone
    otherwise; so they go first, and then the commits, the oldest before all others.
    """
    commits, checkpoints = list_log(storage, name)
    storage.delete(log_entries.last_checkpoint_path(name))
    for version in checkpoints:
        storage.delete(log_entries.checkpoint_path(name, version))
    for version in commits:
        storage.delete(log_entries.commit_path(name, version))


def clear_remainder(storage: Storage, name: str) -> None:
    """Remove what an unfinished drop left of a log, so that a table can be made there.

    Of two that do so at once neither removes what the other has made: that begins with version 0,
    which was not there after the names were listed.
    """
    commits, checkpoints = list_log(storage, name)
    if not is_remainder(commits, checkpoints) or storage.exists(log_entries.commit_path(name, 0)):
        return
    for version in commits:
        storage.delete(log_entries.commit_path(name, version))
    storage.delete(log_entries.last_checkpoint_path(name))


def data_file(add: Add) -> DataFile:
    """Return the file that an `add` names."""
    if add.partition_values or add.deletion_vector is not None:
        raise Invalid(
            f"{add.path} is partitioned or has a deletion vector, which this version cannot read",
            hint="Another program wrote to the table: only the pipeline's owner may",
        )
    tags = {k: v for k, v in (add.tags or {}).items() if v is not None}
    rows = 0
    if add.stats:
        rows = msgspec.json.decode(add.stats, type=_RecordCount).numRecords
    return DataFile(add.path, rows, add.size, add.stats or "", tags)


def user_metadata(text: str | None) -> dict[str, str]:
    """Return a commit's own words; none if another program wrote it."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, str])
    except msgspec.DecodeError:
        return {}


class _RecordCount(msgspec.Struct):
    numRecords: int = 0  # noqa: N815 - Delta's name


def _check_protocol(name: str, protocol: log_entries.Protocol) -> None:
    if (
        protocol.min_reader_version > log_entries.READER_VERSION
        or protocol.min_writer_version > log_entries.WRITER_VERSION
    ):
        raise Invalid(
            f"{name} asks for reader {protocol.min_reader_version} and writer "
            f"{protocol.min_writer_version} of Delta; this version speaks 1 and 2",
            hint="Use the newer Headrace that wrote it, or restore the table",
        )


def _metadata_of(storage: Storage, name: str, version: int) -> dict[str, str]:
    """Return the words of a commit that is in a checkpoint, which does not keep them."""
    entries = read_commit(storage, name, version) or []
    infos = [e.commit_info for e in entries if e.commit_info is not None]
    return user_metadata(infos[0].user_metadata) if infos else {}
