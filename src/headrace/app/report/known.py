"""What a report is made from: a data directory that is open to be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from headrace.app.cli.status import is_running
from headrace.app.data_directory import find_plan, require
from headrace.app.report.scale import SECOND_US, step_us
from headrace.app.site import open_site
from headrace.define.types import quoted
from headrace.model.clock import Clock
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER, Plan
from headrace.model.samples import SAMPLES
from headrace.model.site import Site
from headrace.model.tables import Tables
from headrace.process.ledger import LedgerRow, read_rows
from headrace.serve.owner import OwnerSql

POINTS_MAX = 200
"""Points of a line; what lies between two is put together."""
EMPTY_SPAN_US = 3600 * SECOND_US
"""What a report without anything to tell is about."""

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Known:
    """A data directory, and the time that is asked for."""

    layout: Layout
    site: Site
    tables: Tables
    sql: OwnerSql
    clock: Clock
    plan: Plan | None
    """None if nothing ran here yet."""
    is_running: bool
    has_samples: bool
    epochs: Sequence[LedgerRow]
    """Rows of the ledger within that time, ascending; it forgets them after a while."""
    last: LedgerRow | None
    begin_us: int
    end_us: int

    @property
    def bucket_us(self) -> int:
        """How much time a point of a line stands for."""
        return step_us(self.end_us - self.begin_us, POINTS_MAX)

    def query(self, sql: str) -> Rows:
        """Return the rows of a SELECT."""
        return self.sql.query(sql).to_pylist()

    def samples(self, what: str, *, by: str = "") -> Rows:
        """Return aggregates of samples, by `t`, the time of a point, and more; ascending."""
        if not self.has_samples:
            return []
        keys = f"t, {by}" if by else "t"
        width = self.bucket_us
        return self.query(
            f"SELECT epoch_us(sampled_at) // {width} * {width} AS {keys}, {what} "
            f"FROM headrace.samples WHERE {self.within('sampled_at')} GROUP BY ALL ORDER BY ALL"
        )

    def within(self, column: str) -> str:
        """Return SQL that is true of a time within that of the report."""
        return f"epoch_us({quoted(column)}) BETWEEN {self.begin_us} AND {self.end_us}"


@contextmanager
def known(layout: Layout, clock: Clock, since_s: float | None) -> Iterator[Known]:
    """Open a data directory; the time ends now, or, if nothing runs, when something last did.

    It begins `since_s` before, or with the oldest that is kept. `Invalid` if there is no directory.
    """
    require(layout)
    site = open_site(layout, clock)
    tables = site.tables()
    with closing(site), closing(OwnerSql(site)) as sql:
        ledger = tables.snapshot(LEDGER)
        rows = sorted(read_rows(tables, ledger, after=0), key=lambda r: r.epoch) if ledger else []
        times = [row.committed_at_us for row in rows]
        has_samples = SAMPLES in tables.names()
        if has_samples:
            span = "min(sampled_at) AS a, max(sampled_at) AS b"
            found = sql.query(
                f"SELECT epoch_us(a) AS a, epoch_us(b) AS b FROM (SELECT {span} "
                "FROM headrace.samples)"
            )
            times += [us for us in found.to_pylist()[0].values() if us is not None]
        running = is_running(layout)
        end_us = clock.now_us() if running or not times else max(times)
        begin_us = min(times, default=end_us - EMPTY_SPAN_US)
        if since_s is not None:
            begin_us = max(begin_us, end_us - round(since_s * SECOND_US))
        yield Known(
            layout=layout,
            site=site,
            tables=tables,
            sql=sql,
            clock=clock,
            plan=find_plan(layout),
            is_running=running,
            has_samples=has_samples,
            epochs=[r for r in rows if begin_us <= r.committed_at_us <= end_us],
            last=rows[-1] if rows else None,
            begin_us=begin_us,
            # A span of nothing has no axis.
            end_us=max(end_us, begin_us + SECOND_US),
        )
