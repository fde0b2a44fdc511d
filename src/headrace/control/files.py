"""Small files that one role writes and others read while it does."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put content at `path` so that a reader sees all of the old or all of the new.

    Not synced: what lies in `run/` need not outlive the machine.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
