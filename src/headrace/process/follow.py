"""What a follower of a table has not taken in yet, by the version and epoch that it names."""

from __future__ import annotations

from headrace.model.tables import AddedFiles, Table


def commits_since(
    table: Table, version: int | None, epoch: int, epoch_txn: str
) -> list[AddedFiles] | None:
    """Return what each commit after a version added, oldest first; None: start over.

    `version` and `epoch` are what the follower contains, at least; `epoch_txn` is the application
    id under which the table counts epochs. It has to start over (1) from nothing; (2) where the log
    no longer reaches back; (3) where the table is not the one it followed: repair took a damaged
    commit away, and another took its version since. Such a commit brings an epoch that neither the
    follower nor a later commit knows of.
    """
    now = table.snapshot
    if version is None or version > now.version:
        return None
    added = table.added_since(version)
    if added is None:
        return None
    reached = max([epoch, *(commit.txns.get(epoch_txn, 0) for commit in added)])
    return added if reached >= now.txns.get(epoch_txn, 0) else None
