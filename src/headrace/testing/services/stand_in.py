"""The three services with their records, what goes wrong with them, and who asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.testing.services import gbif, idigbio, obis
from headrace.testing.services.collection import Collection, Record
from headrace.testing.services.exchange import Service
from headrace.testing.services.faults import Fault, Faults
from headrace.testing.services.generated import (
    Generated,
    GeneratedGbif,
    GeneratedIdigbio,
    GeneratedObis,
)
from headrace.testing.services.moments import micros
from headrace.testing.services.recorded import History, recorded
from headrace.testing.services.report import Entry, Recorder, Report
from headrace.testing.services.taxa import Taxa

PREFIXES = {"gbif": "/gbif/v1", "obis": "/obis/v3", "idigbio": "/idigbio/v2"}
NAMES = tuple(PREFIXES)
RECORDS = 1_000
GENERATED: dict[str, type[Generated]] = {
    "gbif": GeneratedGbif,
    "obis": GeneratedObis,
    "idigbio": GeneratedIdigbio,
}


class StandIn:
    """State of the stand-ins and the ways to change it; no sockets here."""

    def __init__(
        self,
        clock: Clock,
        *,
        data: Path | None = None,
        records: int | Mapping[str, int] = RECORDS,
        seed: int = 0,
        wall: int = gbif.WALL,
    ) -> None:
        """Serve what was recorded at `data`, or else so many generated records a service.

        `wall` is what GBIF's `offset` + `limit` may be. Raises `Invalid` if `data` has no records.
        """
        self.clock = clock
        self.faults = Faults(clock)
        self.recorder = Recorder(clock, NAMES)
        self._seed = seed
        self._histories: dict[str, History] = {} if data is None else recorded(data)
        of = records if isinstance(records, Mapping) else dict.fromkeys(NAMES, records)
        self._made = {name: of.get(name, 0) for name in NAMES}
        self._taxa = Taxa(seed, species=max(40, min(5_000, max(self._made.values()) // 40)))
        first = {name: self._first(name) for name in NAMES}
        self.services: dict[str, Service] = {
            "gbif": gbif.Gbif(Collection(gbif.SHAPE, first["gbif"]), clock, wall),
            "obis": obis.Obis(Collection(obis.SHAPE, first["obis"])),
            "idigbio": idigbio.Idigbio(Collection(idigbio.SHAPE, first["idigbio"])),
        }

    def _first(self, name: str) -> Sequence[Record]:
        if name in self._histories:
            return self._histories[name].after(len(self._histories[name].versions))
        return GENERATED[name](self._seed, self._made[name], self._taxa)

    # What there is.

    def truth(self, service: str) -> Iterator[Record]:
        """Yield the records of a service as they stand, those it hides included."""
        return self._service(service).collection.records()

    def keys(self, service: str) -> list[str]:
        """Return the keys of the records of a service."""
        return self._service(service).collection.keys()

    # Changing it.

    def change(self, service: str, key: str, fields: Mapping[str, Any]) -> Record:
        """Set fields of a record, its marks of change as well; return it as it is now."""
        return self._put(service, self._record(service, key) | dict(fields))

    def reidentify(self, service: str, key: str, donor: str | None = None) -> Record:
        """Make a record one of the taxon of another: `donor`, or the first of another taxon."""
        of = self._service(service)
        record = self._record(service, key)
        if donor is not None:
            return self._put(service, of.identify(record, self._record(service, donor)))
        for other in of.collection.records():
            identified = of.identify(record, other)
            if identified != record:
                return self._put(service, identified)
        raise Invalid(f"All records of {service} are of one taxon", code="one_taxon")

    def remove(self, service: str, keys: Sequence[str]) -> None:
        """Take records out of a service."""
        of = self._service(service)
        for key in keys:
            of.stamp(self._record(service, key), self.clock.now_us())
        of.collection.remove(keys)

    def add(self, service: str, *, records: Sequence[Record] = (), count: int = 0) -> list[str]:
        """Add records as they are given, and `count` generated ones; return the keys of all."""
        of = self._service(service)
        made = GENERATED[service](self._seed, count, self._taxa, first=self._made[service])
        self._made[service] += count
        now_us = self.clock.now_us()
        added = [*records, *(of.stamp(record, now_us) for record in made)]
        before = set(of.collection.select(()))
        of.collection.put(added)
        return [key for key in of.collection.select(()) if key not in before]

    def versions(self, service: str) -> int:
        """Return how many versions were recorded of a service's records."""
        return len(self._history(service).versions)

    def advance(self, service: str, versions: int) -> None:
        """Have the records as they stood after so many of the recorded versions."""
        records = self._history(service).after(versions)
        self._service(service).collection.replace(records)

    def as_of(self, service: str, moment: str) -> int:
        """Have the records as they stood at a moment (ISO 8601); return how many versions."""
        at_us = micros(moment)
        if at_us is None:
            raise Invalid(f"{moment!r} is no moment", code="invalid_moment")
        versions = self._history(service).before(at_us)
        self.advance(service, versions)
        return versions

    def cache(self, seconds: float) -> None:
        """Have GBIF answer a search as it did before for so long; 0: not."""
        service = self.services["gbif"]
        if isinstance(service, gbif.Gbif):
            service.cache_s = seconds

    # What goes wrong, and who asked.

    def fail(self, kind: str, **about: Any) -> None:  # noqa: ANN401 - checked by `Fault`
        """Turn a fault on; `about` are fields of `Fault`. Raises `Invalid` if they are wrong."""
        try:
            self.faults.add(msgspec.convert({"kind": kind, **about}, Fault))
        except msgspec.ValidationError as error:
            raise Invalid(f"There is no such fault: {error}", code="invalid_fault") from error

    def heal(self) -> None:
        """Turn all faults off."""
        self.faults.clear()

    def mark(self) -> None:
        """Say that a sweep begins, for what the report calls repeated."""
        self.recorder.mark()

    def requests(self) -> list[Entry]:
        """Return every request, oldest first."""
        return self.recorder.entries()

    def report(self) -> Report:
        """Return whether the requests were polite."""
        return self.recorder.report()

    def forget(self) -> None:
        """Begin the report anew."""
        self.recorder.reset()

    def _put(self, service: str, record: Record) -> Record:
        of = self._service(service)
        stamped = of.stamp(record, self.clock.now_us())
        of.collection.put([stamped])
        return stamped

    def _service(self, name: str) -> Service:
        if name not in self.services:
            raise Invalid(f"There is no service {name!r}", hint=f"one of {', '.join(NAMES)}")
        return self.services[name]

    def _record(self, service: str, key: str) -> Record:
        record = self._service(service).collection.get(key)
        if record is None:
            raise Invalid(f"{service} has no record {key!r}", code="no_record")
        return record

    def _history(self, service: str) -> History:
        if service not in self._histories:
            raise Invalid(
                f"The records of {service} are generated: they have no versions",
                hint="start the stand-in with the folder of recordings",
                code="no_versions",
            )
        return self._histories[service]
