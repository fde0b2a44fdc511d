"""What an SQL worker gives up before it reads the first statement.

DuckDB itself is told to open no other file and no network (`worker.py`). This is for the case that
it can be made to all the same: the process writes no file, has no environment, little memory, the
least claim to the processor, is the first to go when the machine's memory ends, and, where Linux
lets a plain user do so, sees no network at all. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

NICENESS = 19
FILES_MAX = 1024
ADDRESS_SPACE_BYTES = 4 << 30
"""What may be reserved beyond the memory that DuckDB may use: libraries, arenas, stacks."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def confine(memory_bytes: int, parent: int) -> None:
    """Give up what a worker does not need; `parent` is the process that started this one."""
    os.environ.clear()
    os.umask(0o077)
    os.chdir("/")
    os.nice(NICENESS)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, FILES_MAX)
    # Python's own way to say that a write is refused is an exception, not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sys.platform == "linux":
        # Beyond the last place in the queue: whatever else wakes up goes on at once. A container
        # may refuse the call; the niceness stands then.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        _limit(resource.RLIMIT_AS, memory_bytes + ADDRESS_SPACE_BYTES)
        _confine_on_linux(parent)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (bound, bound))


def _confine_on_linux(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before this was asked for.
        os._exit(0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Many machines refuse this to plain users; DuckDB is told to use no network anyway.
    libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    # What it would say to the kernel is a write, which is not to a file with a size.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
