"""Having GBIF make an archive of all records of a query, and reading it.

1. `POST /occurrence/download/request` with the query as a predicate answers 201 with a key. A page
   without records makes the key durable before anything else. A crash before that asks twice, and
   is given the same key: GBIF makes no second download of what an account has asked for within two
   days, nor of what it made for everybody within 35.
2. `GET /occurrence/download/<key>` is asked now and then until the archive is made: PREPARING,
   RUNNING and SUSPENDED mean wait; SUCCEEDED, that it is there; KILLED, FAILED and FILE_ERASED,
   that another has to be asked for, which is done twice; CANCELLED, that somebody did not want it.
3. `GET /occurrence/download/request/<key>.zip` leads to the file. It is fetched in pieces into a
   folder of its own; after a failure, the next piece is asked for.
4. Its rows are handed out. The cursor counts them; a crash fetches the same archive again.

As many downloads as may be made at once for an account (three) is 420, answered by waiting. An
archive is what GBIF had when it was asked for first: that is when its records count as seen, and
one from before the sweep says nothing of what is gone.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Closed, Invalid, Unavailable
from headrace.model.source import Sweep
from headrace.sources.gbif_archive import read_rows
from headrace.sources.gbif_query import Query
from headrace.sources.http import Service
from headrace.sources.sweeps import Part, bounded, swept_record

FORMAT = "DWCA"
ROWS_OF_A_PAGE = 1_000
PIECE_BYTES = 64 << 20
"""How much of an archive is fetched at a time; a server that knows no ranges sends all of it."""
SAME_S = 172_800.0
"""For how long GBIF answers a request with a download that was asked for before."""
SKEW_US = 300_000_000
"""How far GBIF's clock may be behind ours."""
FAILURES_MAX = 2
"""How often a download that failed is asked for anew, of one sweep."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DOWNLOAD = "/occurrence/download"
_WAITS = frozenset({"PREPARING", "RUNNING", "SUSPENDED"})
_FAILED = frozenset({"KILLED", "FAILED", "FILE_ERASED"})
_SUCCEEDED = "SUCCEEDED"
_PARTIAL = 206
_KEY = re.compile(r"[0-9A-Za-z-]{1,64}")
_CONTENT_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")
_ASK_AGAIN = "nothing needs to be done: it is asked again"


class Account(NamedTuple):
    """Who asks for downloads. Environment variables are named, so that no plan holds a secret."""

    user_env: str
    password_env: str
    contact: str

    def credentials(self) -> tuple[str, str]:
        """Return name and password; `Invalid` if they are not in the environment."""
        missing = [name for name in (self.user_env, self.password_env) if not os.environ.get(name)]
        if missing:
            msg = f"Downloads take an account, and {' and '.join(missing)} is not set"
            hint = "set it in the environment, or name another by user_env and password_env"
            raise Invalid(msg, hint=hint, code="no_account")
        return os.environ[self.user_env], os.environ[self.password_env]


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which archive is read, and how far."""

    key: str = ""
    """Empty for one that is still to be asked for."""
    asked_at_us: int = 0
    """By our clock; counts where GBIF does not say when it was."""
    rows: int = 0
    """How many were handed out."""
    failures: int = 0
    finished: bool = False


class _Status(msgspec.Struct, rename="camel"):
    """What GBIF says of a download."""

    status: str
    total_records: int = 0
    size: int = 0
    created: datetime | None = None

    def created_us(self) -> int | None:
        """Return when the download was asked for first."""
        return None if self.created is None else (self.created - _EPOCH) // _MICROSECOND


_POSITION = msgspec.json.Decoder(Position)
_STATUS = msgspec.json.Decoder(_Status)


class Downloads:
    """A source's downloads, one after another. `volatile`: members that no digest is made of."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        closed: threading.Event,
        account: Account,
        *,
        poll_s: float,
        folder: str,
        volatile: frozenset[str],
    ) -> None:
        self._service = service
        self._clock = clock
        self._closed = closed
        self._account = account
        self._poll_s = poll_s
        self._folder = folder
        self._volatile = volatile
        self._held: tuple[str, tempfile.TemporaryDirectory[str]] | None = None
        """The archive that is read, by its key: kept when asking failed, for the next time."""

    def parts(self, query: Query, sweep: Sweep, position: bytes | None) -> Iterator[Part]:
        """Yield the records of a download from a position on; the first part may be empty."""
        at = _POSITION.decode(position) if position else Position()
        if at.finished:
            return
        if not at.key:
            at = self._asked(query, at)
            yield Part((), msgspec.json.encode(at))
        status = self._made(at.key)
        if status.status != _SUCCEEDED:
            yield Part((), msgspec.json.encode(self._failed(at, status)))
            msg = f"GBIF could not make the download {at.key}: {status.status}"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="download_failed")
        path = self._fetched(at.key, status.size)
        try:
            yield from self._rows(path, sweep, at, status)
        except Unavailable:
            # What is damaged is fetched again from its start.
            self._let_go()
            raise
        finally:
            if self._closed.is_set():
                self._let_go()
        self._let_go()

    def _asked(self, query: Query, at: Position) -> Position:
        """Ask for a download; return the position at its start."""
        user, password = self._account.credentials()
        body: dict[str, object] = {"creator": user, "sendNotification": False, "format": FORMAT}
        if "@" in self._account.contact:
            body |= {"notificationAddresses": [self._account.contact]}
        if query.taxonomy:
            body |= {"checklistKey": query.taxonomy}
        if (predicate := query.predicate()) is not None:
            body |= {"predicate": predicate}
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers = {"authorization": f"Basic {secret}"}
        answer = self._service.post(f"{_DOWNLOAD}/request", body, headers=headers)
        key = answer.body.decode("utf-8", "replace").strip().strip('"')
        if not _KEY.fullmatch(key):
            msg = f"GBIF answered a request for a download with {key[:80]!r}, which is no key"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="unreadable_answer")
        return Position(key, answer.asked_at_us, failures=at.failures)

    def _made(self, key: str) -> _Status:
        """Return what became of a download, when something has."""
        while True:
            status = self._service.get(f"{_DOWNLOAD}/{key}").read(_STATUS)
            if status.status == _SUCCEEDED or status.status in _FAILED:
                return status
            if status.status not in _WAITS:
                msg = f"The download {key} is {status.status.lower()}"
                hint = "remove the source and add it again to ask for another"
                raise Invalid(msg, hint=hint, code="download_cancelled")
            if self._clock.wait(self._closed, self._poll_s):
                raise Closed("The source is closed")

    def _failed(self, at: Position, status: _Status) -> Position:
        if at.failures >= FAILURES_MAX:
            msg = f"GBIF could not make the download {at.key}, nor others before: {status.status}"
            raise Invalid(msg, hint="ask for less, or ask GBIF why", code="download_failed")
        return Position(failures=at.failures + 1)

    def _fetched(self, key: str, size_bytes: int) -> Path:
        """Return the archive as a file; what an earlier try had fetched is gone on from."""
        if self._held is None or self._held[0] != key:
            self._let_go()
            folder = tempfile.TemporaryDirectory(prefix="headrace-gbif-", dir=self._folder or None)
            self._held = key, folder
        to = Path(self._held[1].name, "archive.zip")
        piece = to.with_name("piece")
        free_bytes = shutil.disk_usage(to.parent).free
        have = to.stat().st_size if to.exists() else 0
        if size_bytes - have > free_bytes:
            msg = f"The download {key} has {size_bytes} bytes, and {to.parent} has room for fewer"
            raise Invalid(msg, hint="name another by the option folder", code="no_room")
        while size_bytes == 0 or have < size_bytes:
            wanted = f"bytes={have}-{have + PIECE_BYTES - 1}"
            headers = {"range": wanted, "accept": "*/*", "accept-encoding": "identity"}
            path = f"{_DOWNLOAD}/request/{key}.zip"
            answer = self._service.download(path, piece, headers=headers)
            if answer.status != _PARTIAL:
                piece.replace(to)
                break
            with to.open("ab") as file, piece.open("rb") as new:
                shutil.copyfileobj(new, file)
            before, have = have, to.stat().st_size
            in_all = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if have == before or (in_all is not None and have >= int(in_all[1])):
                break
        return to

    def _rows(self, path: Path, sweep: Sweep, at: Position, made: _Status) -> Iterator[Part]:
        seen_at_us = made.created_us() or at.asked_at_us
        is_of_sweep = seen_at_us >= sweep.started_at_us - SKEW_US
        if is_of_sweep:
            seen_at_us = max(seen_at_us, sweep.started_at_us)
        total = made.total_records
        rows = read_rows(path, at.rows)
        while values := list(islice(rows, ROWS_OF_A_PAGE)):
            records = [swept_record(v, "key", seen_at_us, self._volatile) for v in values]
            for page in bounded(records):
                at = msgspec.structs.replace(at, rows=at.rows + len(page))
                yield Part(page, msgspec.json.encode(at), total)
        at = msgspec.structs.replace(at, finished=True)
        yield Part((), msgspec.json.encode(at), total, sound=is_of_sweep and at.rows >= total)

    def _let_go(self) -> None:
        if self._held is not None:
            self._held[1].cleanup()
            self._held = None
