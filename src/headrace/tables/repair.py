"""Start-up repair on a local disk: what a crash or a power cut can leave, put right or refused.

Only for the holder of the data directory's lock, before anything else opens a table. Commits of
ours are durable before they are visible, so a damaged one is the work of a failing disk or of
another program; still it is looked for, because a damaged commit that is followed by another would
lose rows silently.

Object storage tears nothing, and nobody holds a lock there: another owner may be at work. So what
lies there is never repaired, and damage is `Corrupt` to whoever reads it.
"""

from __future__ import annotations

import msgspec

from headrace.model.errors import Corrupt
from headrace.model.samples import SAMPLES
from headrace.tables import log_entries, log_state
from headrace.tables.delta import DeltaTables
from headrace.tables.log_entries import Entry, LastCheckpoint
from headrace.tables.log_state import LogState
from headrace.tables.storage import LocalStorage, Storage


def repair(tables: DeltaTables) -> list[str]:
    """Check every table; return the names of those that lost a damaged newest commit.

    The caller rolls the ledger forward over them.

    1. Remove what a killed process left half written.
    2. Remove a newest checkpoint that cannot be read or differs from its commits, where these are
       still kept; make `_last_checkpoint` name the newest good one.
    3. Check every commit after it: a newest one that is empty, cut off, or names a file that is
       missing or has another size is removed.

    Damage that is followed by a later commit, and a hole in the log, are `Corrupt`. The samples are
    left out: they are written meanwhile, and who writes them sees to them.
    """
    if not isinstance(tables.storage, LocalStorage):
        return []
    tables.storage.clear_temporary()  # 1
    return [n for n in tables.names() if n != SAMPLES and repair_table(tables, n)]


def repair_table(tables: DeltaTables, name: str) -> bool:
    """Check one table, as `repair` does; return whether it lost a damaged newest commit."""
    if not isinstance(tables.storage, LocalStorage):
        return False
    base_version = _repair_checkpoints(tables.storage, name)  # 2
    return _repair_commits(tables.storage, name, base_version)  # 3


def _repair_checkpoints(storage: Storage, name: str) -> int:
    """Return the version of the newest checkpoint that is good; -1 if there is none."""
    commits, checkpoints = log_state.list_log(storage, name)
    kept = set(commits)
    while checkpoints:
        newest = checkpoints.pop()
        before = checkpoints[-1] if checkpoints else -1
        replaceable = kept.issuperset(range(before + 1, newest + 1))
        try:
            state = _checkpoint_state(storage, name, newest)
            if not replaceable or _same(state, _replayed_state(storage, name, before, newest)):
                _point_to(storage, name, newest, state)
                return newest
        except Corrupt:
            if not replaceable:
                raise
        storage.delete(log_entries.checkpoint_path(name, newest))
    storage.delete(log_entries.last_checkpoint_path(name))
    return -1


def _checkpoint_state(storage: Storage, name: str, version: int) -> LogState:
    state = LogState(name, storage.uri(name))
    state.apply(version, log_state.read_checkpoint(storage, name, version))
    return state


def _replayed_state(storage: Storage, name: str, before: int, version: int) -> LogState:
    """Return what the commits say that a checkpoint of `version` must hold."""
    if before < 0:
        state = LogState(name, storage.uri(name))
    else:
        state = _checkpoint_state(storage, name, before)
    log_state.advance(storage, state, version)
    return state


def _same(one: LogState, other: LogState) -> bool:
    return (one.files, one.txns, one.schema, one.version) == (
        other.files,
        other.txns,
        other.schema,
        other.version,
    )


def _point_to(storage: Storage, name: str, version: int, state: LogState) -> None:
    try:
        if log_state.last_checkpoint(storage, name) == version:
            return
    except Corrupt:
        pass  # cut off: written again below
    actions = len(state.files) + len(state.removed) + len(state.txns) + 2
    words = LastCheckpoint(version=version, size=actions)
    storage.put(log_entries.last_checkpoint_path(name), msgspec.json.encode(words))


def _repair_commits(storage: Storage, name: str, base_version: int) -> bool:
    """Remove a damaged newest commit; return whether there was one."""
    commits = [v for v in log_state.list_log(storage, name)[0] if v > base_version]
    if commits != list(range(base_version + 1, base_version + 1 + len(commits))):
        raise Corrupt(
            f"Commits of {name} after version {base_version} are missing from its log",
            hint="Restore the table from a backup",
        )
    damage = _find_damage(storage, name, commits)
    if not damage:
        return False
    version, reason = min(damage.items())
    if version != commits[-1]:
        raise Corrupt(
            f"Version {version} of {name} is damaged ({reason}), and later ones stand on it",
            hint="Restore the table from a backup",
        )
    storage.delete(log_entries.commit_path(name, version))
    return True


def _find_damage(storage: Storage, name: str, commits: list[int]) -> dict[int, str]:
    """Return version → reason of the commits that are damaged."""
    damage: dict[int, str] = {}
    live: dict[str, tuple[int, int]] = {}
    for version in commits:
        try:
            entries = log_state.read_commit(storage, name, version) or []
        except Corrupt as e:
            damage[version] = e.message
            continue
        _follow(live, version, entries)
    for path, (version, size_bytes) in live.items():
        found = storage.size(f"{name}/{path}")
        if found != size_bytes:
            damage.setdefault(version, f"{path} has {found} bytes, not {size_bytes}")
    return damage


def _follow(live: dict[str, tuple[int, int]], version: int, entries: list[Entry]) -> None:
    """Keep path → (version that added it, size) of the files that are still in the table."""
    for entry in entries:
        if entry.remove is not None:
            live.pop(entry.remove.path, None)
        if entry.add is not None:
            live[entry.add.path] = (version, entry.add.size)
