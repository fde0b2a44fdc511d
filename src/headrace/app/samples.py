"""Keeps samples in a Delta table to which several nodes append, and which keeps itself small.

The pipeline's other tables have one owner; whoever loses the race for a version of theirs stops.
Here a row means the same wherever it lands, so who loses looks again and goes on over the newer
version. It is still the exclusive creation of a version that makes each commit, so nothing is lost
and nothing is there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pyarrow as pa

from headrace.app.sampler import Sampler
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Corrupt, Fenced, Unavailable
from headrace.model.pipeline_options import Options
from headrace.model.samples import SAMPLE_SCHEMA, SAMPLES
from headrace.model.site import Site
from headrace.model.tables import DataFile, Table
from headrace.process.gate import Gate
from headrace.tables.compact import compact, plan_compaction
from headrace.tables.delta import DeltaTables
from headrace.tables.parquet import made_at_us
from headrace.tables.repair import repair_table

TRIES = 20
"""How often a commit is tried over what others have committed meanwhile."""
COMMITS_PER_TIDY = 64
"""Who makes a version that this divides tidies up: one node at a time, without an appointment."""
FILES_MAX = 24
"""Files of the same day before small ones of them are made one."""
KEEP_COMMITS_S = 3600.0
ORPHAN_AGE_S = 3600.0
"""Files that no commit names are deleted at this age; see `STAGED_S_MAX`."""
STAGED_S_MAX = 600.0
"""A file staged longer ago is given up: clean-up may take it any moment."""
DAY = "day"
"""Tag of a file: the day of its rows, UTC. Compaction keeps days apart, retention drops them."""
_TXN = "samples#files"


class SamplesTable:
    """The table, for one thread of one node."""

    def __init__(
        self,
        tables: DeltaTables,
        clock: Clock,
        *,
        keep_s: float,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        is_shared: bool = False,
    ) -> None:
        """Keep rows for `keep_s`, and up to a day longer: a day goes as a whole.

        `turn` is entered around each commit, so that a backup can keep them out. What lies damaged
        where no other node writes is mended, or begun anew.
        """
        self._turn = turn
        self._tables = tables
        self._clock = clock
        self._keep_s = keep_s
        self._table: Table | None = None
        self._is_checked = is_shared

    def stage(self, rows: pa.Table) -> DataFile:
        """Return a durable file of rows, to be committed once, which no reader sees before."""
        # First: what is begun anew takes what is staged with it.
        self._check()
        return self._tables.stage(SAMPLES, rows, tags={DAY: _day(self._clock.now_us())})

    def commit(self, staged: DataFile) -> None:
        """Make a staged file part of the table, durable on return; once however often it is called.

        Tidies up when it is this node's turn. Raises `Unavailable` if the storage does not answer,
        or if others were quicker each time: call it again.
        """
        with self._turn():
            self._commit(staged)

    def _commit(self, staged: DataFile) -> None:
        for _ in range(TRIES):
            try:
                table = self._opened()
                if all(f.path != staged.path for f in table.snapshot.files):
                    table.commit([staged])
                if table.snapshot.version % COMMITS_PER_TIDY == 0:
                    self._tidy(table)
            except Fenced:
                self._table = None
            except BaseException:
                # Whether the commit is there is not known: it is looked for next time.
                self._table = None
                raise
            else:
                return
        raise Unavailable(f"Others commit to {SAMPLES} all the time", hint="Try again")

    def is_too_old(self, staged: DataFile) -> bool:
        """Return whether clean-up may take a staged file before it is committed."""
        made_us = made_at_us(staged.path) or 0
        return self._clock.now_us() - made_us > STAGED_S_MAX * 1_000_000

    def _opened(self) -> Table:
        if self._table is None:
            found: Table | None = self._tables.open(SAMPLES)
            self._table = found or self._tables.create(SAMPLES, SAMPLE_SCHEMA)
        return self._table

    def _check(self) -> None:
        """Mend what a power cut tore, or begin anew: no pipeline stops for the sake of samples."""
        if self._is_checked:
            return
        try:
            repair_table(self._tables, SAMPLES)
        except Corrupt:
            self._tables.drop(SAMPLES)
        self._is_checked = True

    def _tidy(self, table: Table) -> None:
        """Drop days that are over long enough, make small files one, shorten the log.

        Another node may commit at any step: then `Fenced`, and what is left is done next time.
        """
        now_us = self._clock.now_us()
        before = _day(now_us - round(self._keep_s * 1_000_000))
        past = [f for f in table.snapshot.files if f.tags.get(DAY, "") < before]
        if past:
            number = table.snapshot.txns.get(_TXN, 0)
            table.commit((), past, txns={_TXN: number + 1})
        for group in self._groups(table.snapshot.files):
            compact(self._tables, table, group, txn=_TXN)
        table.checkpoint(KEEP_COMMITS_S)
        table.clean(now_us - round(ORPHAN_AGE_S * 1_000_000), table.snapshot.version)

    def _groups(self, files: Sequence[DataFile]) -> Iterable[Sequence[DataFile]]:
        """Yield what becomes one file: days that are over each as a whole, today's tier by tier."""
        today = _day(self._clock.now_us())
        days: dict[str, list[DataFile]] = {}
        for file in files:
            days.setdefault(file.tags.get(DAY, ""), []).append(file)
        now = days.pop(today, [])
        yield from (group for group in days.values() if len(group) > 1)
        if self._table is not None and len(now) > FILES_MAX:
            whole = plan_compaction(self._table.snapshot, files_max=FILES_MAX)
            yield from (group for group in whole if group[0].tags.get(DAY) == today)


def sampler_of(site: Site, options: Options, clock: Clock, say: Callable[[str], None]) -> Sampler:
    """Return what samples the roles of a run into the tables of its site."""

    def kept() -> SamplesTable:
        tables = site.tables()
        assert isinstance(tables, DeltaTables)
        return SamplesTable(
            tables,
            clock,
            keep_s=options.samples_retention_s,
            turn=Gate(site.layout.run).turn,
            is_shared=site.is_shared,
        )

    return Sampler(site.layout.run, kept, clock, options.sample_every_s, say)


def _day(us: int) -> str:
    """Return the day of a time, `2026-11-22`: days compare as their texts do."""
    return rfc3339(us).partition("T")[0]
