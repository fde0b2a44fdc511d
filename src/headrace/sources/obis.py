"""The source `obis`: occurrence records of the Ocean Biodiversity Information System, API v3.

`/occurrence` gives records in the order of their ids, at most 10,000 a page; `after` the last id
comes the next page, and an empty one is the end. So a page can be cut anywhere, and records that
come or go meanwhile move no other.

**Changes.** A record says nothing of when OBIS took it in, but `/dataset` says of each dataset when
it was `updated`. A sweep of changes reads those that were, whole, one after another.

**Errors inside a 200.** An answer may hold an `error` beside, or instead of, `results`. A name that
OBIS does not know makes the source stop if nothing is left to ask for. Where other names of the
filter were found, their records are taken, and the sweep ends as one that is not full. Any other
error is asked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Invalid, Unavailable
from headrace.model.options import option
from headrace.model.source import Sweep
from headrace.sources.http import Answer, Network
from headrace.sources.sweeps import (
    Part,
    SweepOptions,
    SweepSource,
    keyset_parts,
    swept_record,
)

SIZE_MAX = 10_000
"""Records that the service gives at a time at most; it refuses to be asked for more."""
HIDDEN = {"hide": None, "include": "include", "only": "true"}
"""How records that are hidden by default are asked for: our word → the service's."""

_PAGING = ("after", "fields", "offset", "size", "total")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID = "id"
_UNKNOWN_NAME = "NAME_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class ObisOptions(SweepOptions):
    """What a source of kind `obis` can be told."""

    url: str = option(
        "https://api.obis.org/v3",
        doc="Where the service is.",
        example="https://api.obis.org/v3",
    )
    page_size: int = option(
        1000,
        doc="Records to ask for at a time.",
        unit="records",
        at_least=1,
        at_most=SIZE_MAX,
        example=5000,
    )
    taxon: str = option(
        "",
        doc="Taxa with all that is below them: AphiaIDs of WoRMS, or scientific names, separated"
        " by commas; empty for all.",
        example="127405",
    )
    dataset: str = option(
        "",
        doc="Ids of datasets, separated by commas; empty for all.",
        example="ec9df3b9-3b2b-4d83-881b-27bcbcd57b95",
    )
    absences: str = option(
        "hide",
        doc="Records of a species that was looked for and not found: hide, include, or only.",
        example="include",
    )
    dropped: str = option(
        "hide",
        doc="Records that OBIS drops for their quality: hide, include, or only.",
        example="include",
    )
    filter: str = option(
        "",
        doc="More of the service's own parameters, as the query of a URL.",
        example="startdate=2020-01-01&nodeid=4bf79a01-65a9-4db6-b37b-18434f26ddfc",
    )

    def __post_init__(self) -> None:
        """Refuse what the service would take for something else."""
        for name, value in (("absences", self.absences), ("dropped", self.dropped)):
            if value not in HIDDEN:
                msg = f"{name} must be hide, include or only, not {value!r}"
                raise Invalid(msg, hint=f'for example {name}="include"')
        taken = sorted({name for name, _ in _parameters(self.filter)} & {*_PAGING})
        if taken:
            msg = f"filter must not set {', '.join(taken)}: the source pages by itself"
            raise Invalid(msg, hint="leave that out; page_size says how much is asked at a time")


class _Found(msgspec.Struct):
    """An answer to `/occurrence`."""

    total: int | None = None
    results: list[msgspec.Raw] | None = None
    error: object = None


class _Dataset(msgspec.Struct):
    """What is read of a dataset."""

    id: str
    updated: str | None = None


class _Datasets(msgspec.Struct):
    """An answer to `/dataset`."""

    results: list[_Dataset]


class _Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """Behind which record a sweep goes on, and in which dataset if it reads some of them."""

    after: str = ""
    dataset: str = ""


class _Listed(NamedTuple):
    """The datasets as they were listed last, and the mark of that list."""

    etag: str
    datasets: list[_Dataset]


_FOUND = msgspec.json.Decoder(_Found)
_DATASETS = msgspec.json.Decoder(_Datasets)
_POSITION = msgspec.json.Decoder(_Position)


class Obis(SweepSource):
    """See the module's words."""

    Options = ObisOptions

    def __init__(self, options: ObisOptions, clock: Clock, network: Network) -> None:
        super().__init__(options, clock, network)
        self._options = options
        self._query = _query(options)
        self._listed = _Listed("", [])

    def filter(self) -> str:
        """See `SweepSource`."""
        return urlencode(self._query)

    def deletion(self, key: bytes) -> bytes:
        """See `Swept`."""
        return msgspec.json.encode({_ID: key.decode("utf-8", "surrogatepass")})

    def count(self) -> tuple[int, str]:
        """See `Swept`."""
        found, _ = self._ask({"size": "1"})
        if found.total is None:
            msg = "OBIS did not say how many records there are"
            raise Unavailable(msg, hint="nothing needs to be done: it is asked again")
        return found.total, self.filter()

    def parts(self, sweep: Sweep, since_us: int | None, position: bytes | None) -> Iterator[Part]:  # noqa: ARG002
        """See `SweepSource`."""
        at = _POSITION.decode(position) if position else _Position()
        if since_us is None:
            yield from self._records(at)
            return
        for dataset in self._updated(since_us):
            if dataset > at.dataset:
                at = _Position(dataset=dataset)
            if dataset == at.dataset:
                yield from self._records(at)

    def _records(self, at: _Position) -> Iterator[Part]:
        """Yield all records behind a position, or those of its dataset."""
        after = at.after
        while True:
            asked = {"size": str(self._options.page_size)}
            if at.dataset:
                asked["datasetid"] = at.dataset
            if after:
                # As OBIS's own client does: counting again for every page is a burden on it.
                asked |= {"after": after, "total": "false"}
            found, answer = self._ask(asked)
            sound = not found.error
            if not found.results:
                if not sound:
                    yield Part((), _position(after, at.dataset), sound=False)
                return
            records = [swept_record(bytes(r), _ID, answer.asked_at_us) for r in found.results]
            total = None if after or at.dataset else found.total
            for part in keyset_parts(
                records,
                after,
                lambda last: _position(last, at.dataset),
                total=total,
                sound=sound,
            ):
                yield part
                after = _POSITION.decode(part.position).after

    def _ask(self, paging: dict[str, str]) -> tuple[_Found, Answer]:
        answer = self.service.get("/occurrence", {**dict(self._query), **paging})
        found = answer.read(_FOUND)
        behind = "after" in paging
        if found.error or found.results is None:
            only_names = _names_error(found.error) and found.results is not None
            if not only_names or not (found.total or found.results or behind):
                raise _failure(found.error, only_names=only_names)
        return found, answer

    def _updated(self, since_us: int) -> list[str]:
        """Return the ids of the datasets that were updated since then, in order."""
        chosen = {d for d in self._options.dataset.split(",") if d}
        return sorted(
            d.id
            for d in self._datasets()
            if (not chosen or d.id in chosen) and _updated_us(d, since_us) >= since_us
        )

    def _datasets(self) -> list[_Dataset]:
        """Return all datasets that have some of the records.

        The list is long, so it is sent again only if it has changed.
        """
        known = {"if-none-match": self._listed.etag} if self._listed.etag else {}
        answer = self.service.get("/dataset", dict(self._query), headers=known)
        if not answer.not_modified:
            datasets = answer.read(_DATASETS).results
            self._listed = _Listed(answer.headers.get("etag", ""), datasets)
        return self._listed.datasets


def _parameters(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query.removeprefix("?"), keep_blank_values=True)


def _query(options: ObisOptions) -> dict[str, str]:
    """Return the parameters that say what is asked for."""
    query = dict(_parameters(options.filter))
    taxa = [t for t in (t.strip() for t in options.taxon.split(",")) if t]
    if taxa:
        name = "taxonid" if all(t.isdecimal() for t in taxa) else "scientificname"
        query[name] = ",".join(taxa)
    if options.dataset:
        query["datasetid"] = options.dataset
    for name, value in (("absence", options.absences), ("dropped", options.dropped)):
        asked = HIDDEN[value]
        if asked is not None:
            query[name] = asked
    return query


def _position(after: str, dataset: str) -> bytes:
    return msgspec.json.encode(_Position(after, dataset))


def _names_error(error: object) -> bool:
    """Return whether an `error`, a word or an array of them, is of nothing but unknown names."""
    words = error if isinstance(error, list) else [error]
    return bool(words) and all(word == _UNKNOWN_NAME for word in words)


def _failure(error: object, *, only_names: bool) -> HeadraceError:
    if only_names:
        msg = "OBIS does not know the name that is asked for"
        hint = "correct taxon: a scientific name of WoRMS, or its AphiaID"
        return Invalid(msg, hint=hint, code="unknown_taxon")
    words = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    msg = f"OBIS answered with an error: {words[:300]}"
    return Unavailable(msg, hint="it is asked again", code="service_failed")


def _updated_us(dataset: _Dataset, unsaid_us: int) -> int:
    """Return when a dataset was updated; one that does not say so is read again."""
    try:
        moment = datetime.fromisoformat(dataset.updated or "")
    except ValueError:
        return unsaid_us
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
