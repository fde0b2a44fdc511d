"""Records that were recorded from the real services, read where they lie, never copied.

A folder of recordings has `large/*-record-versions.ndjson.gz` and `large/obis-records.ndjson.gz`:
each distinct version of each record, in the order in which the services had them.
"""

from __future__ import annotations

import gzip
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import msgspec

from headrace.model.errors import Invalid
from headrace.testing.services.collection import Record
from headrace.testing.services.moments import micros


class Version(msgspec.Struct, frozen=True):
    """A record as a service had it from a moment on."""

    key: str
    at_us: int | None
    """When the service says that it made this version; None where it does not say."""
    body: bytes


class History:
    """All versions of a service's records, oldest first."""

    def __init__(self, versions: Sequence[Version]) -> None:
        """Hold the versions."""
        self.versions = versions
        self._moments = [v.at_us or 0 for v in versions]

    def before(self, us: int) -> int:
        """Return how many versions were made by a moment. Raises `Invalid` where none is dated."""
        if any(v.at_us is None for v in self.versions) or self._moments != sorted(self._moments):
            raise Invalid(
                "The versions of these records are not in an order of time",
                hint="move by a number of versions instead",
                code="versions_without_time",
            )
        return bisect_right(self._moments, us)

    def after(self, count: int) -> Bodies:
        """Return the records as they stood after the first `count` versions."""
        latest = {v.key: v.body for v in self.versions[:count]}
        return Bodies(list(latest.values()))


class Bodies(Sequence[Record]):
    """Records kept as JSON, decoded when they are read."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        """Hold the bodies."""
        self._bodies = bodies

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._bodies)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        """Return a record, decoded anew."""
        if isinstance(index, slice):
            return Bodies(self._bodies[index])
        decoded: Record = msgspec.json.decode(self._bodies[index])
        return decoded


def recorded(data: Path) -> dict[str, History]:
    """Return the histories of the three services from a folder of recordings.

    Raises `Invalid` if they are not there.
    """
    large = data / "large"
    try:
        return {
            "gbif": _read(large / "gbif-record-versions.ndjson.gz", _gbif),
            "obis": _read(large / "obis-records.ndjson.gz", _obis),
            "idigbio": _read(large / "idigbio-record-versions.ndjson.gz", _idigbio),
        }
    except FileNotFoundError as missing:
        raise Invalid(
            f"There are no recordings at {data}: {missing.filename} is missing",
            hint="give the folder that holds large/, or leave it out to have records generated",
            code="no_recordings",
        ) from missing


def _read(path: Path, version: Callable[[bytes], Version]) -> History:
    with gzip.open(path) as lines:
        versions = [version(line) for line in lines]
    # A sort by time is stable, and leaves what has no time where it stands.
    return History(sorted(versions, key=lambda v: v.at_us or 0))


class _Gbif(msgspec.Struct):
    key: int | str
    lastInterpreted: str  # noqa: N815 - the service's name


class _Obis(msgspec.Struct):
    id: str


class _Terms(msgspec.Struct):
    datemodified: str


class _Idigbio(msgspec.Struct, rename="camel"):
    uuid: str
    index_terms: _Terms


class _Line(msgspec.Struct):
    """A line of a file of versions: its record, under one of two names."""

    record: msgspec.Raw = msgspec.Raw()
    item: msgspec.Raw = msgspec.Raw()


def _gbif(line: bytes) -> Version:
    body = bytes(msgspec.json.decode(line, type=_Line).record)
    about = msgspec.json.decode(body, type=_Gbif)
    return Version(str(about.key), micros(about.lastInterpreted), body)


def _obis(line: bytes) -> Version:
    return Version(msgspec.json.decode(line, type=_Obis).id, None, line.strip())


def _idigbio(line: bytes) -> Version:
    body = bytes(msgspec.json.decode(line, type=_Line).item)
    about = msgspec.json.decode(body, type=_Idigbio)
    return Version(about.uuid, micros(about.index_terms.datemodified), body)
