"""Cutting what GBIF will not page through into slices that it will.

The search gives the first 100,000 records of a query and no more (`OccurrenceSearchEsImpl` of
github.com/gbif/occurrence: `offset + limit <= maxOffset`). So what is larger is cut by the values
that a facet says a field has, each slice again if need be, until each is small enough. Records that
lack the field are a slice of their own, the last one.

Slices form a tree, and a cursor cannot hold a tree of thousands. So it holds the path to one slice
only: the next one follows from a facet of the slices above it, whose values have an order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from headrace.model.errors import Invalid
from headrace.sources.gbif_query import Step

WALL = 100_000
"""How many records of a query the search pages through."""
FACET_VALUES_MAX = 5_000
"""How many values of a facet are asked for; a field that has more is not cut by."""
VALUES_MAX = 25
"""Most values that a slice joins: the addresses of requests and cursors stay short."""

FIELDS = (
    "datasetKey",
    "year",
    "month",
    "country",
    "basisOfRecord",
    "publishingCountry",
    "familyKey",
    "speciesKey",
)
"""What is cut by, the most welcome first. A record has one value of each at most, or else slices
would overlap; every record has a dataset and a basis."""
_NUMBERS = frozenset({"year", "month", "familyKey", "speciesKey"})

Path = tuple[Step, ...]


class Facet(NamedTuple):
    """How many records of a slice have each value of a field."""

    field: str
    counts: Mapping[str, int]
    records: int
    """Of the slice, counted in the same answer."""

    @property
    def missing(self) -> int:
        """Return how many records have no value."""
        return self.records - sum(self.counts.values())

    @property
    def usable(self) -> bool:
        """Whether cutting by the field gives slices that are smaller and that do not overlap."""
        cuts = len(self.counts) > 1 or (bool(self.counts) and self.missing > 0)
        return cuts and len(self.counts) < FACET_VALUES_MAX and self.missing >= 0

    def after(self, last: Step | None, target: int) -> Step | None:
        """Return the slice after `last`, or the first one; None if `last` was the last.

        Neighbouring values are joined as long as they have no more than `target` records together.
        """
        if last is not None and last.values is None:
            return None
        values = sorted(self.counts, key=self._place)
        if last is not None and last.values:
            passed = self._place(last.values[-1])
            values = [value for value in values if self._place(value) > passed]
        if not values:
            return Step(self.field, None) if self.missing > 0 else None
        joined, records = [values[0]], self.counts[values[0]]
        for value in values[1:VALUES_MAX]:
            records += self.counts[value]
            if records > target:
                break
            joined.append(value)
        return Step(self.field, tuple(joined))

    def _place(self, value: str) -> tuple[int, str]:
        """Return what values are sorted by: numbers by size, and before words."""
        try:
            number = int(value) if self.field in _NUMBERS else 0
        except ValueError:
            number = 1 << 63
        return number, value


def fields_to_cut_by(path: Path) -> Iterator[str]:
    """Yield the fields by which a slice may be cut further, the most welcome first."""
    fixed = {s.field for s in path if s.values is None or len(s.values) == 1}
    return (field for field in FIELDS if field not in fixed)


def too_large(what: str, records: int, wall: int) -> Invalid:
    """Return the error that a slice cannot be made small enough."""
    return Invalid(
        f"GBIF pages through {wall:,} records of a query, and {what} has {records:,}, which"
        " cannot be cut further",
        hint='ask for less, or use mode="download"',
        code="slice_too_large",
    )
