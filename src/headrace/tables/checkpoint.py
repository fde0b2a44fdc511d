"""Checkpoints by `deltalake`, made durable by us, and only then the clean-up of the log.

`deltalake` syncs nothing to a local disk. A power cut after its checkpoint and before our sync can
leave one that cannot be read; the commits are still there then, and start-up repair removes it.
"""

from __future__ import annotations

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.model.errors import Unavailable
from headrace.model.failpoint import failpoint
from headrace.tables import log_entries, log_state
from headrace.tables.storage import Storage


def write(storage: Storage, name: str, version: int) -> None:
    """Checkpoint a version that has been committed, unless that was done before.

    The order of effects:
    1. `deltalake` writes the checkpoint and `_last_checkpoint`;
    2. sync the newest checkpoint, then `_last_checkpoint`; also if it was there before, for whoever
       wrote it may have been killed between 1 and 2.
    """
    newest = log_state.last_checkpoint(storage, name)
    if newest is None or newest < version:
        _make(storage.uri(name), version)  # 1
        newest = version
    failpoint("checkpoint.1")
    storage.sync(log_entries.checkpoint_path(name, newest))  # 2
    storage.sync(log_entries.last_checkpoint_path(name))
    failpoint("checkpoint.2")


def _make(uri: str, version: int) -> None:
    try:
        DeltaTable(uri, version=version).create_checkpoint()
    except (DeltaError, OSError) as e:
        raise Unavailable(
            f"No checkpoint of {uri} could be written: {e}",
            hint="Look for room on the disk; the table itself is untouched",
        ) from e


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
