"""Delta tables: the contract `model.tables` over any storage.

We write commits ourselves: Delta's commit is the exclusive creation of exactly version v+1 over the
version v that was read, and that creation (`Storage.put_new`) is the fence, the atom and the
durability in one. That others can read all this is proved in tests.
"""

from __future__ import annotations

import importlib.metadata
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced, Internal, Unavailable
from headrace.model.tables import AddedFiles, DataFile, Snapshot
from headrace.tables import checkpoint, log_entries, log_state, parquet
from headrace.tables.log_entries import Add, CommitInfo, Entry, MetaData, Remove, Txn
from headrace.tables.log_state import LogState
from headrace.tables.schema import merge, normalise, normalise_rows, to_delta
from headrace.tables.storage import TEMPORARY, Storage, open_storage

_ENGINE = f"Headrace/{importlib.metadata.version('headrace')}"

DELETED_FILE_RETENTION_S = 3600
"""How long checkpoints go on listing files that were taken out.

Delta's default, a week, would make those of a view that is published often thousands of times
larger than its files.
"""

_CONFIGURATION: dict[str, str | None] = {
    "delta.deletedFileRetentionDuration": f"interval {DELETED_FILE_RETENTION_S} seconds",
}


class OwnedTable:
    """A table opened by its owner; see `model.tables.Table`."""

    def __init__(self, storage: Storage, clock: Clock, state: LogState) -> None:
        """Hold the state that the next commit will stand on."""
        self._storage = storage
        self._clock = clock
        self._state = state
        self._snapshot = state.snapshot()

    @property
    def snapshot(self) -> Snapshot:
        """See `Table`."""
        return self._snapshot

    def refresh(self) -> Snapshot:
        """See `Table`."""
        state = log_state.load(self._storage, self._state.name)
        if state is None:
            raise Fenced(
                f"Another owner has dropped {self._state.name}",
                hint="Stop this process: its work from here on would be lost",
            )
        self._state = state
        self._snapshot = state.snapshot()
        return self._snapshot

    def commit(
        self,
        add: Sequence[DataFile] = (),
        remove: Sequence[DataFile] = (),
        *,
        txns: Mapping[str, int] | None = None,
        data_change: bool = True,
        schema: pa.Schema | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """See `Table`."""
        state = self._state
        self._check_files(add, remove)
        now_ms = self._clock.now_us() // 1000
        entries = [
            Entry(commit_info=_commit_info(state.version, now_ms, add, remove, metadata)),
            *self._schema_change(schema),
            *(Entry(txn=Txn(app, number, now_ms)) for app, number in (txns or {}).items()),
            *(Entry(remove=_remove(f, now_ms, data_change)) for f in remove),
            *(Entry(add=_add(f, now_ms, data_change)) for f in add),
        ]
        put_commit(self._storage, state.name, state.version + 1, entries)
        state.apply(state.version + 1, entries)
        self._snapshot = state.snapshot()
        return self._snapshot

    def added_since(self, version: int) -> list[AddedFiles] | None:
        """See `Table`."""
        state = self._state
        if version >= state.version:
            return []
        # The log must reach back to `version` itself: the oldest commit that is kept may be one
        # that a stalled owner put where a cleaned one had been.
        if log_state.read_commit(self._storage, state.name, version) is None:
            return None
        added = []
        for later in range(version + 1, state.version + 1):
            entries = log_state.read_commit(self._storage, state.name, later)
            if entries is None:
                return None
            added.append(_added_files(later, entries))
        # Compaction replaces files, which are deleted once nobody is known to follow them.
        files = [f.path for commit in added for f in commit.files if f.path not in state.files]
        gone = any(not self._storage.exists(f"{state.name}/{path}") for path in files)
        return None if gone else added

    def checkpoint(self, keep_log_s: float) -> None:
        """See `Table`. It may run beside a commit of the same owner."""
        state, snapshot, now_us = self._state, self._snapshot, self._clock.now_us()
        since_us = now_us - DELETED_FILE_RETENTION_S * 1_000_000
        # The state may be ahead of the snapshot by a commit under way.
        live = {f.path for f in snapshot.files}
        removed = {
            path: gone_us
            for path, (gone_in, gone_us) in list(state.removed.items())
            if gone_in <= snapshot.version and gone_us >= since_us and path not in live
        }
        if state.meta_data is None:
            raise Internal(f"{state.name} is open without a schema")
        checkpoint.write(self._storage, snapshot, state.meta_data, removed)
        before_ms = (now_us - round(keep_log_s * 1e6)) // 1000
        checkpoint.clean_log(self._storage, state.name, before_ms=before_ms)

    def clean(self, older_than_us: int, keep_version: int) -> int:
        """See `Table`."""
        state = self._state
        deleted = 0
        for stored in self._storage.files(state.name):
            made_us = parquet.made_at_us(stored.name)
            if made_us is None or made_us >= older_than_us or stored.name in state.files:
                continue
            # A file that no commit we read has named is an orphan, or was taken out before.
            gone_in, gone_us = state.removed.get(stored.name, (state.base_version, made_us))
            if gone_in <= keep_version and gone_us < older_than_us:
                self._storage.delete(f"{state.name}/{stored.name}")
                state.removed.pop(stored.name, None)
                deleted += 1
        return deleted

    def _check_files(self, add: Sequence[DataFile], remove: Sequence[DataFile]) -> None:
        files = self._state.files
        missing = [f.path for f in remove if f.path not in files]
        taken = [f.path for f in add if f.path in files]
        if missing or taken:
            raise Internal(
                f"A commit to {self._state.name} would remove {missing} that it has not, "
                f"and add {taken} that it has"
            )

    def _schema_change(self, schema: pa.Schema | None) -> Iterable[Entry]:
        if schema is None:
            return []
        merged = merge(self._state.schema, normalise(schema))
        if merged.equals(self._state.schema) or self._state.meta_data is None:
            return []
        changed = msgspec.structs.replace(self._state.meta_data, schema_string=to_delta(merged))
        return [Entry(meta_data=changed)]


@dataclass
class _Reader:
    """What was last read of a table, for readers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: LogState | None = None
    snapshot: Snapshot | None = None
    stamp: str | None = None


class DeltaTables:
    """All tables of a data directory; see `model.tables.Tables`."""

    def __init__(self, root: Path | str, clock: Clock, *, storage: Storage | None = None) -> None:
        """Use a folder, or a URL such as `s3://bucket/prefix`, or a `storage` made elsewhere."""
        self.storage: Storage = storage if storage is not None else open_storage(root, clock)
        self._clock = clock
        self._readers: dict[str, _Reader] = {}
        self._readers_lock = threading.Lock()

    def names(self) -> list[str]:
        """See `Tables`."""
        return sorted(
            name
            for kind in self.storage.folders("")
            if kind != TEMPORARY
            for table in self.storage.folders(kind)
            if self._exists(name := f"{kind}/{table}")
        )

    def create(
        self, name: str, schema: pa.Schema, *, txns: Mapping[str, int] | None = None
    ) -> OwnedTable:
        """See `Tables`."""
        if self._exists(name):
            raise Fenced(f"{name} exists already", hint="Open it")
        if not self.storage.drops_at_once:
            log_state.clear_remainder(self.storage, name)
        now_ms = self._clock.now_us() // 1000
        meta_data = MetaData(
            id=str(uuid.UUID(bytes=self._clock.new_id())),
            format=log_entries.Format(),
            schema_string=to_delta(normalise(schema)),
            partition_columns=[],
            configuration=_CONFIGURATION,
            created_time=now_ms,
        )
        info = CommitInfo(now_ms, "CREATE TABLE", {}, engine_info=_ENGINE)
        protocol = log_entries.Protocol(log_entries.READER_VERSION, log_entries.WRITER_VERSION)
        entries = [Entry(commit_info=info), Entry(protocol=protocol), Entry(meta_data=meta_data)]
        entries += [Entry(txn=Txn(app, n, now_ms)) for app, n in (txns or {}).items()]
        put_commit(self.storage, name, 0, entries)
        state = LogState(name, self.storage.uri(name))
        state.apply(0, entries)
        return OwnedTable(self.storage, self._clock, state)

    def open(self, name: str) -> OwnedTable | None:
        """See `Tables`."""
        state = log_state.load(self.storage, name)
        return None if state is None else OwnedTable(self.storage, self._clock, state)

    def snapshot(self, name: str, version: int | None = None) -> Snapshot | None:
        """See `Tables`. None also if `version` is not there, or not kept any more."""
        if version is not None:
            state = log_state.load(self.storage, name, version)
            return None if state is None else state.snapshot()
        with self._readers_lock:
            reader = self._readers.setdefault(name, _Reader())
        with reader.lock:
            return self._newest(name, reader)

    def stage(
        self,
        name: str,
        rows: pa.Table | pa.RecordBatchReader,
        *,
        unique: Sequence[str] = (),
        tags: Mapping[str, str] = {},
    ) -> DataFile:
        """See `Tables`."""
        if isinstance(rows, pa.Table):
            pieces: Iterable[pa.Table] = [normalise_rows(rows)]
        else:
            pieces = (normalise_rows(pa.Table.from_batches([batch])) for batch in rows)
        return parquet.write(
            self.storage,
            name,
            parquet.new_file_name(self._clock),
            normalise(rows.schema),
            pieces,
            unique=unique,
            tags=tags,
        )

    def read(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> pa.Table:
        """See `Tables`."""
        pieces = list(self._pieces(snapshot, files))
        return pa.concat_tables(pieces) if pieces else snapshot.schema.empty_table()

    def scan(
        self, snapshot: Snapshot, files: Sequence[DataFile] | None = None
    ) -> pa.RecordBatchReader:
        """See `Tables`."""
        pieces = self._pieces(snapshot, files)
        return pa.RecordBatchReader.from_batches(
            snapshot.schema, (batch for piece in pieces for batch in piece.to_batches())
        )

    def _pieces(self, snapshot: Snapshot, files: Sequence[DataFile] | None) -> Iterator[pa.Table]:
        for file in snapshot.files if files is None else files:
            try:
                yield from parquet.read(self.storage, snapshot.name, file, snapshot.schema)
            except FileNotFoundError:
                raise self._missing(snapshot, file) from None

    def drop(self, name: str) -> None:
        """See `Tables`."""
        if not self.storage.drops_at_once:
            log_state.take_apart(self.storage, name)
        self.storage.delete_folder(name)
        with self._readers_lock:
            self._readers.pop(name, None)

    def _exists(self, name: str) -> bool:
        if not self.storage.drops_at_once:
            return not log_state.is_remainder(*log_state.list_log(self.storage, name))
        # Version 0 is the first that log clean-up removes, and only after a checkpoint; a log
        # with neither is damaged, and still not free to be written over.
        return (
            self.storage.exists(log_entries.commit_path(name, 0))
            or self.storage.exists(log_entries.last_checkpoint_path(name))
            or bool(self.storage.files(f"{name}/{log_entries.LOG}"))
        )

    def _newest(self, name: str, reader: _Reader) -> Snapshot | None:
        state = reader.state
        # The commit that we stand on is still the same, so the newer ones follow from it. If it
        # was cleaned away, or the table was dropped and made again, we read from the start.
        if state is not None and reader.stamp == self._commit_stamp(state):
            before = state.version
            log_state.advance(self.storage, state)
            if state.version == before:
                return reader.snapshot
        else:
            state = log_state.load(self.storage, name)
        reader.state = state
        reader.stamp = None if state is None else self._commit_stamp(state)
        reader.snapshot = None if state is None else state.snapshot()
        return reader.snapshot

    def _commit_stamp(self, state: LogState) -> str:
        path = log_entries.commit_path(state.name, state.version)
        return self.storage.stamp(path) or "gone"

    def _missing(self, snapshot: Snapshot, file: DataFile) -> Corrupt | Unavailable:
        newest = self.snapshot(snapshot.name)
        if newest is not None and any(f.path == file.path for f in newest.files):
            return Corrupt(
                f"{snapshot.name}/{file.path} is missing", hint="Restore the table from a backup"
            )
        return Unavailable(
            f"Version {snapshot.version} of {snapshot.name} has been cleaned away",
            hint="Take a new snapshot",
            retry_after_s=0.0,
        )


def put_commit(storage: Storage, name: str, version: int, entries: Sequence[Entry]) -> None:
    """Make a commit; `Fenced` if another owner has made that version.

    The order of effects:
    1. create the version exclusively and durably;
    2. look whether the version below is still there. Log clean-up removes the lowest first and
       never the newest, so if it is not, the name was free because another owner had made it,
       checkpointed it and cleaned it away, and readers never look there; or because the table was
       dropped. It is taken back, lest it stands in the way of a table made anew.
    """
    path = log_entries.commit_path(name, version)
    storage.put_new(path, log_entries.encode(entries), new_folder=version == 0)  # 1
    if version:  # 2
        stands = storage.exists(log_entries.commit_path(name, version - 1))
    else:
        stands = not storage.exists(log_entries.last_checkpoint_path(name))
    if not stands:
        storage.delete(path)
        raise Fenced(
            f"Another owner has taken {name} past version {version}",
            hint="Stop this process: its work from here on would be lost",
        )


def _commit_info(
    read_version: int,
    now_ms: int,
    add: Sequence[DataFile],
    remove: Sequence[DataFile],
    metadata: Mapping[str, str] | None,
) -> CommitInfo:
    words = msgspec.json.encode(dict(metadata)).decode() if metadata else None
    return CommitInfo(
        timestamp=now_ms,
        operation="WRITE",
        operation_parameters={"added": str(len(add)), "removed": str(len(remove))},
        read_version=read_version,
        is_blind_append=not remove,
        engine_info=_ENGINE,
        user_metadata=words,
    )


def _add(file: DataFile, now_ms: int, data_change: bool) -> Add:  # noqa: FBT001 - Delta's order
    return Add(
        path=file.path,
        partition_values={},
        size=file.size_bytes,
        modification_time=now_ms,
        data_change=data_change,
        stats=file.stats or f'{{"numRecords":{file.rows}}}',
        tags=dict(file.tags) or None,
    )


def _remove(file: DataFile, now_ms: int, data_change: bool) -> Remove:  # noqa: FBT001 - as above
    return Remove(
        path=file.path,
        data_change=data_change,
        deletion_timestamp=now_ms,
        extended_file_metadata=True,
        partition_values={},
        size=file.size_bytes,
    )


def _added_files(version: int, entries: Sequence[Entry]) -> AddedFiles:
    return AddedFiles(
        version=version,
        files=tuple(log_state.data_file(e.add) for e in entries if e.add and e.add.data_change),
        txns={e.txn.app_id: e.txn.version for e in entries if e.txn},
        removed_rows=any(e.remove.data_change for e in entries if e.remove),
    )
