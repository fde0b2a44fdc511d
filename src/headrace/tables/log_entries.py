"""The lines of a Delta commit that we write and understand.

Format: Delta Transaction Log Protocol, reader version 1, writer version 2. A commit is a file of
JSON lines, each an object with one member that says what it is. Lines of other kinds that such a
table may hold are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.model.errors import Corrupt

READER_VERSION = 1
WRITER_VERSION = 2
LOG = "_delta_log"
LAST_CHECKPOINT = "_last_checkpoint"


class _Line(msgspec.Struct, rename="camel", omit_defaults=True):
    """How Delta names members."""


class Protocol(_Line):
    """What a program must understand to read and to write the table."""

    min_reader_version: int
    min_writer_version: int


class Format(_Line, omit_defaults=False):
    """How data files are written."""

    provider: str = "parquet"
    options: dict[str, str] = {}


class MetaData(_Line, omit_defaults=False):
    """Identity and schema of the table."""

    id: str
    format: Format
    schema_string: str
    partition_columns: list[str]
    configuration: dict[str, str | None]
    created_time: int | None = None


class Add(_Line):
    """A file becomes part of the table."""

    path: str
    partition_values: dict[str, str | None]
    size: int
    modification_time: int
    data_change: bool
    stats: str | None = None
    tags: dict[str, str | None] | None = None
    deletion_vector: msgspec.Raw | None = None


class Remove(_Line):
    """A file is no longer part of the table; its bytes stay until they are cleaned."""

    path: str
    data_change: bool
    deletion_timestamp: int | None = None
    extended_file_metadata: bool | None = None
    partition_values: dict[str, str | None] | None = None
    size: int | None = None


class Txn(_Line):
    """The newest number of an application."""

    app_id: str
    version: int
    last_updated: int | None = None


class CommitInfo(_Line):
    """What a commit was, for people. `user_metadata` is JSON text of our own words."""

    timestamp: int | None = None
    operation: str | None = None
    operation_parameters: dict[str, str] | None = None
    read_version: int | None = None
    is_blind_append: bool | None = None
    engine_info: str | None = None
    user_metadata: str | None = None


class Entry(_Line):
    """One line: exactly one member is set, or none if the line is of another kind."""

    commit_info: CommitInfo | None = None
    protocol: Protocol | None = None
    meta_data: MetaData | None = None
    txn: Txn | None = None
    add: Add | None = None
    remove: Remove | None = None


class LastCheckpoint(_Line):
    """What the file `_last_checkpoint` says."""

    version: int
    size: int
    size_in_bytes: int | None = None
    num_of_add_files: int | None = None


def commit_path(table: str, version: int) -> str:
    """Return the name of a commit."""
    return f"{table}/{LOG}/{version:020}.json"


def checkpoint_path(table: str, version: int) -> str:
    """Return the name of a checkpoint."""
    return f"{table}/{LOG}/{version:020}.checkpoint.parquet"


def last_checkpoint_path(table: str) -> str:
    """Return the name of the file that says which checkpoint is the newest."""
    return f"{table}/{LOG}/{LAST_CHECKPOINT}"


def encode(entries: Sequence[Entry]) -> bytes:
    """Return the bytes of a commit."""
    return msgspec.json.Encoder().encode_lines(entries)


def decode(path: str, data: bytes) -> list[Entry]:
    """Return the lines of a commit; `Corrupt` if it is empty, cut off or no Delta commit."""
    try:
        entries: list[Entry] = msgspec.json.Decoder(Entry).decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Corrupt(f"{path} is no Delta commit: {e}", hint="Restore the table") from e
    if not entries or not data.endswith(b"\n"):
        raise Corrupt(f"{path} is empty or cut off", hint="Restore the table")
    return entries


def decode_last_checkpoint(data: bytes | None) -> LastCheckpoint | None:
    """Return what `_last_checkpoint` says; None if there is none.

    `Corrupt` if it cannot be read: start-up repair writes it again.
    """
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=LastCheckpoint)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Corrupt(
            f"{LAST_CHECKPOINT} cannot be read: {e}", hint="Restart: start-up repairs it"
        ) from e
