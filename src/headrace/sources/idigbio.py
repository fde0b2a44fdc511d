"""The source `idigbio`: specimen records of iDigBio, search API v2.

`/search/records` is asked for records in the order of their uuids, behind the last uuid that came.
Paging by offset would end at 100,000; a range of uuids does not, and is moved by nothing that comes
or goes meanwhile. The service gives at most 5,000 at a time, silently, so only an empty page is the
end.

**Changes.** A sweep of changes asks for a range of `datemodified`. iDigBio takes records in days
after it has dated them, so the overlap is long; pull leaves out what it had. Before it, a
conditional request asks whether anything at all was modified since: a 304 ends the sweep.

**Attribution.** A record names its recordset, but not that set's name and licence. Where they are
wanted, they are asked for once a sweep and added to each record as its member `attribution`; the
contacts of people are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.options import option
from headrace.model.source import PulledRecord, Sweep
from headrace.sources.http import Network
from headrace.sources.sweeps import (
    Part,
    SweepOptions,
    SweepSource,
    keyset_parts,
    swept_record,
)

LIMIT_MAX = 5000
"""Records that the service gives at a time, whatever it is asked for."""
ATTRIBUTED = ("uuid", "name", "publisher", "url", "data_rights", "archivelink", "emllink", "logo")
"""What of a recordset's attribution is added to its records."""

_PATH = "/search/records"
_ID = "uuid"
_MODIFIED = "datemodified"
_TAKEN = (_ID, _MODIFIED)
_DAYS_14_S = 1_209_600.0


@dataclass(frozen=True, slots=True)
class IdigbioOptions(SweepOptions):
    """What a source of kind `idigbio` can be told."""

    url: str = option(
        "https://search.idigbio.org/v2",
        doc="Where the service is.",
        example="https://search.idigbio.org/v2",
    )
    overlap_s: float = option(
        _DAYS_14_S,
        doc="How far before the start of the last sweep the next sweep of changes begins: longer"
        " than the service takes to show a change that it has dated, which is days.",
        unit="s",
        at_least=0,
        at_most=31_622_400,
        example=604_800.0,
    )
    page_size: int = option(
        1000,
        doc="Records to ask for at a time.",
        unit="records",
        at_least=1,
        at_most=LIMIT_MAX,
        example=5000,
    )
    taxon: str = option(
        "",
        doc="Scientific name, all of whose words stand in a record's; empty for all.",
        example="Setophaga caerulescens",
    )
    dataset: str = option(
        "",
        doc="Uuids of recordsets, separated by commas; empty for all.",
        example="e2c129bc-e45b-43d1-ab52-86e52093080b",
    )
    filter: str = option(
        "",
        doc="More of what is asked for, in the service's own words: a JSON object as its parameter"
        " rq takes it.",
        example='{"family": "parulidae", "hasImage": true}',
    )
    attribution: bool = option(
        False,
        doc="Add name, publisher, licence and addresses of its recordset to each record, as its"
        " member attribution.",
        example=True,
    )

    def __post_init__(self) -> None:
        """Refuse what the service would take for something else."""
        asked = _conditions(self.filter)
        taken = [name for name in _TAKEN if name in asked]
        if taken:
            msg = f"filter must not set {', '.join(taken)}: the source pages by itself"
            raise Invalid(msg, hint="leave that out")


class _Found(msgspec.Struct, rename="camel"):
    """An answer to `/search/records`."""

    item_count: int
    items: list[msgspec.Raw]
    attribution: list[dict[str, object]] | dict[str, object] = msgspec.field(default_factory=list)


class _Item(msgspec.Struct, rename="camel"):
    """What is read of a record beside its id."""

    index_terms: dict[str, object] = msgspec.field(default_factory=dict)


class _Position(msgspec.Struct, frozen=True):
    """Behind which record a sweep goes on."""

    after: str


_FOUND = msgspec.json.Decoder(_Found)
_ITEM = msgspec.json.Decoder(_Item)
_POSITION = msgspec.json.Decoder(_Position)

Conditions = dict[str, object]
"""What records are asked for, as the service's parameter `rq`: field → value or range."""


class Idigbio(SweepSource):
    """See the module's words."""

    Options = IdigbioOptions

    def __init__(self, options: IdigbioOptions, clock: Clock, network: Network) -> None:
        super().__init__(options, clock, network)
        self._options = options
        self._asked = _asked(options)

    def filter(self) -> str:
        """See `SweepSource`."""
        return msgspec.json.encode(self._asked, order="sorted").decode()

    def deletion(self, key: bytes) -> bytes:
        """See `Swept`."""
        return msgspec.json.encode({_ID: key.decode("utf-8", "surrogatepass")})

    def count(self) -> tuple[int, str]:
        """See `Swept`."""
        body = {"rq": self._asked, "limit": 0, "no_attribution": True}
        return self.service.post(_PATH, body).read(_FOUND).item_count, self.filter()

    def parts(self, sweep: Sweep, since_us: int | None, position: bytes | None) -> Iterator[Part]:  # noqa: ARG002
        """See `SweepSource`."""
        asked = dict(self._asked)
        if since_us is not None:
            if position is None and not self._modified_since(since_us):
                return
            asked[_MODIFIED] = {"type": "range", "gte": _seconds(since_us).isoformat()}
        attributed = self._attribution(asked) if self._options.attribution else {}
        after = _POSITION.decode(position).after if position else ""
        while True:
            body: Conditions = {
                "rq": {**asked, _ID: {"type": "range", "gt": after}} if after else asked,
                "sort": _ID,
                "limit": self._options.page_size,
                "no_attribution": True,
            }
            answer = self.service.post(_PATH, body)
            found = answer.read(_FOUND)
            if not found.items:
                return
            records = [
                _attributed(swept_record(bytes(item), _ID, answer.asked_at_us), attributed)
                for item in found.items
            ]
            total = None if after else found.item_count
            for part in keyset_parts(records, after, _position, total=total):
                yield part
                after = _POSITION.decode(part.position).after

    def _modified_since(self, since_us: int) -> bool:
        """Return whether anything of the whole service was, as far as it says."""
        moment = format_datetime(_seconds(since_us), usegmt=True)
        answer = self.service.get(
            _PATH, {"limit": 0, "no_attribution": "true"}, headers={"if-modified-since": moment}
        )
        return not answer.not_modified

    def _attribution(self, asked: Conditions) -> dict[str, bytes]:
        """Return what is to be cited of each recordset that has some of the records, as JSON."""
        answer = self.service.post(_PATH, {"rq": asked, "limit": 0})
        named = answer.read(_FOUND).attribution
        return {
            str(r["uuid"]): msgspec.json.encode({name: r[name] for name in ATTRIBUTED if name in r})
            for r in (named if isinstance(named, list) else [])
            if "uuid" in r
        }


def _conditions(text: str) -> Conditions:
    try:
        return msgspec.json.decode(text or "{}", type=Conditions)
    except msgspec.DecodeError as error:
        msg = f"filter is no JSON object: {error}"
        raise Invalid(msg, hint='for example filter=\'{"family": "parulidae"}\'') from error


def _asked(options: IdigbioOptions) -> Conditions:
    """Return what records are asked for."""
    asked = _conditions(options.filter)
    if options.taxon:
        asked["scientificname"] = options.taxon
    datasets = [d for d in (d.strip() for d in options.dataset.split(",")) if d]
    if datasets:
        asked["recordset"] = datasets[0] if len(datasets) == 1 else datasets
    return asked


def _position(after: str) -> bytes:
    return msgspec.json.encode(_Position(after))


def _attributed(record: PulledRecord, attributed: dict[str, bytes]) -> PulledRecord:
    """Return a record with its recordset's attribution as a last member.

    The digest stays that of the record: how a set is named is no change of the specimen.
    """
    if not attributed:
        return record
    recordset = _ITEM.decode(record.value).index_terms.get("recordset")
    added = attributed.get(str(recordset))
    if added is None:
        return record
    value = record.value.rstrip()[:-1] + b',"attribution":' + added + b"}"
    return msgspec.structs.replace(record, value=value)


def _seconds(us: int) -> datetime:
    """Return the moment, cut to a whole second as HTTP dates are."""
    return datetime.fromtimestamp(us // 1_000_000, UTC)
