"""Named places where a test can kill, stop or fail a process; they cost nothing otherwise.

`HEADRACE_FAILPOINT=commit.3:2=kill` acts the second time that `commit.3` is reached. Actions:
`kill` (SIGKILL), `stop` (SIGSTOP), `exit` (status 70), `error` (raises OSError EIO), `full` (raises
OSError ENOSPC). The number, and `=kill`, may be left out. Every point stands in `FAILPOINTS`, so a
sweep knows them all; reaching one that does not is an `Internal` error even when nothing is set.
With `HEADRACE_FAILPOINT_ONCE=PATH` only the first process that can make that file acts, so that a
role that is started again runs on.
"""

from __future__ import annotations

import errno
import os
import signal

from headrace.model.errors import Internal

FAILPOINTS: dict[str, str] = {
    "append.1": "before the group is written",
    "append.2": "written, not committed",
    "append.3": "committed, not acknowledged",
    "act.1": "begun, no record is sent",
    "act.2": "records durable, not settled",
    "act.3": "settled, not acknowledged",
    "seal.1": "before the next segment is made",
    "seal.2": "the next segment is durable, this one is not closed",
    "seal.3": "this segment is closed, not checkpointed",
    "trim.1": "before a sealed segment is unlinked",
    "trim.2": "unlinked, folder not synced",
    "stage.1": "a data file is written, not synced",
    "stage.2": "a data file is durable",
    "delta.1": "a commit is written beside the log, not linked",
    "delta.2": "a commit is linked, folder not synced",
    "commit.1": "ranges chosen",
    "commit.2": "stage run, files durable",
    "commit.3": "ledger row appended",
    "commit.4": "some tables committed",
    "commit.5": "tables committed, views not folded",
    "commit.6": "views published, log not trimmed",
    "keyed.1": "changelogs committed, index of old rows not written",
    "keyed.2": "files of a keyed table staged, not committed",
    "keyed.3": "keyed table committed",
    "publish.1": "state staged",
    "publish.2": "state committed, public table not",
    "publish.3": "public table committed",
    "rollforward.1": "last ledger row read",
    "rollforward.2": "some tables rolled forward",
    "compact.1": "compacted file durable, not committed",
    "compact.2": "compaction committed",
    "checkpoint.1": "checkpoint durable, not named the newest",
    "checkpoint.2": "checkpoint named the newest, log not cleaned",
    "checkpoint.3": "log partly cleaned",
    "retention.1": "rewritten files durable, ledger row not appended",
    "retention.2": "retention committed",
    "expiry.1": "kept ids rewritten, not committed",
    "expiry.2": "kept ids committed",
    "anew.1": "ids carried over, no topic made anew",
    "anew.2": "topics made anew, the ledger does not know",
    "promote.1": "all drained, ids and topics made anew",
    "promote.2": "tables copied, keyed state not",
    "promote.3": "all is there, the data directory still says where it was",
    "promote.4": "the data directory belongs to the new place",
}
"""Every failpoint and what has happened when it is reached."""

_seen: dict[str, int] = {}
_exit_status = 70


def failpoint(name: str) -> None:
    """Act if the environment asks for it here."""
    if name not in FAILPOINTS:
        msg = f"Unknown failpoint {name}"
        raise Internal(msg)
    wanted = os.environ.get("HEADRACE_FAILPOINT")
    if wanted:
        _act(name, wanted)


def is_armed(name: str) -> bool:
    """Return whether the environment names this point: some cost too much to be reached always."""
    return os.environ.get("HEADRACE_FAILPOINT", "").partition("=")[0].partition(":")[0] == name


def _act(name: str, wanted: str) -> None:
    place, _, action = wanted.partition("=")
    point, _, nth = place.partition(":")
    if point != name:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] != int(nth or 1) or not _first():
        return
    match action or "kill":
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(_exit_status)
        case "error":
            raise OSError(errno.EIO, "failpoint")
        case "full":
            raise OSError(errno.ENOSPC, "failpoint")
        case other:
            msg = f"Unknown failpoint action {other}"
            raise Internal(msg)


def _first() -> bool:
    once = os.environ.get("HEADRACE_FAILPOINT_ONCE")
    if not once:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
