"""Backup of a data directory between two epochs, and what a restored one must do first.

A backup is a folder like a data directory: tables and ledger as of one moment, and a log that holds
at least all that they do not contain yet. The owner's commits are kept out while it is taken;
the door goes on acknowledging.

Restoring copies the folder and then, before anything new is accepted, drains its log and makes
every topic anew: offsets after the backup were handed out once already, by the run that was lost,
and must not name other records.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from headrace.log.copy import copy_log
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.process.gate import Gate

TABLE_FOLDERS = ("system", "changes", "tables", "views", "state")
COMPLETE = "backup-complete"
"""File that a backup gets last: without it the folder is not a backup."""


def backup(layout: Layout, target: Path) -> Path:
    """Take a backup into a folder that must not exist; return it.

    1. Keep every commit out.
    2. Copy tables and ledger.
    3. Copy the log, which is at least as new.
    4. Make it durable, then mark it complete.
    """
    if target.exists():
        raise Invalid(f"{target} exists already", hint="Name a folder that does not exist yet.")
    if not (layout.root / "system" / "ledger").exists():
        raise Invalid(
            f"{layout.root} holds no pipeline", hint="Give the data directory with --data."
        )
    layout.run.mkdir(exist_ok=True)
    # 1
    with Gate(layout.run).quiet():
        # 2
        target.mkdir(parents=True, mode=0o700)
        for name in TABLE_FOLDERS:
            if (layout.root / name).exists():
                shutil.copytree(layout.root / name, target / name)
        # 3
        if layout.log.exists():
            copy_log(layout.log, target / "log")
    # 4
    sync_tree(target)
    (target / COMPLETE).write_text("")
    sync_tree(target)
    return target


def restore(source: Path, layout: Layout) -> None:
    """Copy a complete backup into a data directory that must be empty or absent.

    The caller then drains the log and makes its topics anew (`app/restore.py`).
    """
    if not (source / COMPLETE).exists():
        raise Invalid(
            f"{source} is not a complete backup", hint="Only a backup that ended can be restored."
        )
    if layout.root.exists() and any(layout.root.iterdir()):
        raise Invalid(
            f"{layout.root} is not empty", hint="Restore into a folder that does not exist yet."
        )
    layout.root.mkdir(parents=True, mode=0o700, exist_ok=True)
    # First: what is copied in part must not be taken for a data directory.
    shutil.copyfile(source / COMPLETE, layout.root / COMPLETE)
    shutil.copytree(source, layout.root, dirs_exist_ok=True)
    # The copy has the backup's mode, which others may have changed on its way here.
    layout.root.chmod(0o700)
    sync_tree(layout.root)


def sync_tree(root: Path) -> None:
    """Make a folder and everything in it durable."""
    for folder, _, files in os.walk(root):
        for name in [*files, "."]:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)  # noqa: PTH118 - a hot loop
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
