"""Holds Python's garbage collector off while many objects are made that have no cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Have nothing looked through for cycles meanwhile; for moments only, it is off everywhere.

    Messages and the tuples of their headers are freed without it. To look through those of a batch
    again and again while it is made takes longer than to make it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
