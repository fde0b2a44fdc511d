"""What is asked of GBIF: one filter, said as a query string, as a predicate, or for people.

The search takes both: `GET /occurrence/search?year=1999` and `POST /occurrence/search/predicate`.
Only a predicate can ask for records that *lack* a field (`isNull`), and only it has room for a long
polygon. Downloads take predicates only. The translation is the one by which GBIF makes a predicate
of a query itself (`PredicateFactory` of github.com/gbif/occurrence): values of one parameter are
alternatives, parameters must all hold, `a,b` of numbers or dates is a range with both ends included
and `*` for an open end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from headrace.model.errors import Invalid

Predicate = dict[str, object]

_DATE = r"\d{4}(?:-\d{2}(?:-\d{2})?)?"
_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER}|{_DATE}|\*)\s*,\s*({_NUMBER}|{_DATE}|\*)")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])")
_GEO_DISTANCE_PARTS = 3
_NO_FILTERS = frozenset(
    {
        "facet",
        "facetLimit",
        "facetMincount",
        "facetMultiselect",
        "facetOffset",
        "hl",
        "limit",
        "matchCase",
        "offset",
        "shuffle",
    }
)
"""Parameters of the search that say how it answers, not what is asked for."""
_TAXONOMY = "checklistKey"
_OF_A_TAXONOMY = frozenset(
    {
        "acceptedTaxonKey",
        "classKey",
        "familyKey",
        "genusKey",
        "kingdomKey",
        "orderKey",
        "phylumKey",
        "speciesKey",
        "subgenusKey",
        "taxonKey",
        "taxonomicStatus",
    }
)
"""Fields whose values mean something in one taxonomy only: the one that `checklistKey` names."""


class Step(NamedTuple):
    """One narrowing of a query: to some values of a field, or to the records that lack it."""

    field: str
    """Name of a search parameter, `year`."""
    values: tuple[str, ...] | None
    """Alternatives; None for the records without a value."""


@dataclass(frozen=True, slots=True)
class Query:
    """A filter of the search: parameters with their values; all must hold, any value of each."""

    terms: Mapping[str, tuple[str, ...]]
    absent: frozenset[str] = frozenset()
    """Fields that a record must not have."""

    def narrowed(self, steps: tuple[Step, ...]) -> Query:
        """Return the query within slices; the last step of a field is the one that counts.

        A value of a slice stands in place of what the filter says of the field, as it was found
        within it.
        """
        terms = dict(self.terms)
        absent = set(self.absent)
        for step in steps:
            if step.values is None:
                terms.pop(step.field, None)
                absent.add(step.field)
            else:
                terms[step.field] = step.values
        return Query(terms, frozenset(absent))

    def with_term(self, name: str, *values: str) -> Query:
        """Return the query with a parameter more."""
        return Query({**self.terms, name: values}, self.absent)

    def params(self) -> dict[str, list[str]]:
        """Return the query's parameters, for a query string; for one without absent fields."""
        return {name: list(values) for name, values in self.terms.items()}

    def text(self) -> str:
        """Return the query as a person reads it, and as the search takes it."""
        return urlencode(self.params(), doseq=True, safe=",*:;()")

    def predicate(self) -> Predicate | None:
        """Return the query as a predicate, without its words `q`; None for everything."""
        taxonomy = self.terms.get(_TAXONOMY, ("",))[0]
        parts = [
            _of_field(name, values, taxonomy if name in _OF_A_TAXONOMY else "")
            for name, values in self.terms.items()
            if name not in {"q", _TAXONOMY}
        ]
        parts += [{"type": "isNull", "parameter": constant(f)} for f in sorted(self.absent)]
        return _joined("and", parts) if parts else None

    @property
    def words(self) -> str:
        """Return the words that are searched for in the full text, empty for none."""
        return " ".join(self.terms.get("q", ()))

    @property
    def taxonomy(self) -> str:
        """Return the key of the checklist that taxon keys are of, empty for GBIF's default."""
        return self.terms.get(_TAXONOMY, ("",))[0]


def read_query(filter_text: str, named: Mapping[str, str], *, status: str) -> Query:
    """Return the query of a free query string and of parameters that have an option each.

    Values of an option are separated by commas, but for `year`, where a comma makes a range.
    `status` is the `occurrenceStatus`, unless the query string says one; empty for any. `Invalid`
    for what the search takes for something else than a filter, or what is said twice.
    """
    terms: dict[str, tuple[str, ...]] = {}
    for name, text in named.items():
        values = (text,) if name == "year" else tuple(v.strip() for v in text.split(","))
        if text:
            terms[name] = tuple(v for v in values if v)
    try:
        pairs = parse_qsl(filter_text.lstrip("?"), strict_parsing=True) if filter_text else []
    except ValueError as error:
        raise _unusable(f"it is no query string: {error}") from error
    free: dict[str, tuple[str, ...]] = {}
    for given, value in pairs:
        name = _parameter(given)
        if name in _NO_FILTERS:
            raise _unusable(f"{given} says how to answer, not what is asked for")
        if name in terms:
            raise _unusable(f"{given} has an option of its own, and that is set too")
        free[name] = (*free.get(name, ()), value)
    terms |= free
    if status:
        terms.setdefault("occurrenceStatus", (status,))
    return Query(dict(sorted(terms.items())))


def _unusable(reason: str) -> Invalid:
    return Invalid(
        f"The filter cannot be used: {reason}",
        hint="for example basisOfRecord=PRESERVED_SPECIMEN&hasCoordinate=true",
        code="invalid_filter",
    )


def _parameter(name: str) -> str:
    """Return a parameter's name as documented; the search takes TAXON_KEY for taxonKey too."""
    if "_" not in name and not name.isupper():
        return name
    first, *rest = name.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def constant(name: str) -> str:
    """Return a parameter's name as predicates and facets have it: TAXON_KEY for taxonKey."""
    return _WORD_START.sub("_", name).upper()


def _of_field(name: str, values: tuple[str, ...], taxonomy: str) -> Predicate:
    """Return the predicate of one field: any of its values."""
    key = constant(name)
    of_taxonomy: Predicate = {"checklistKey": taxonomy} if taxonomy else {}
    parts = [_of_value(name, key, value, of_taxonomy) for value in values]
    if len(parts) > 1 and all(p["type"] == "equals" for p in parts):
        return {"type": "in", "key": key, "values": list(values), **of_taxonomy}
    return _joined("or", parts)


def _of_value(name: str, key: str, value: str, of_taxonomy: Predicate) -> Predicate:
    if name == "geometry":
        return {"type": "within", "geometry": value}
    if name == "geoDistance":
        given = value.split(",")
        if len(given) != _GEO_DISTANCE_PARTS:
            raise _unusable("geoDistance is latitude,longitude,distance")
        latitude, longitude, distance = (part.strip() for part in given)
        return {
            "type": "geoDistance",
            "latitude": latitude,
            "longitude": longitude,
            "distance": distance,
        }
    if found := _RANGE.fullmatch(value):
        ends = zip(("greaterThanOrEquals", "lessThanOrEquals"), found.groups(), strict=True)
        bounds: list[Predicate] = [
            {"type": kind, "key": key, "value": end} for kind, end in ends if end != "*"
        ]
        return _joined("and", bounds) if bounds else {"type": "isNotNull", "parameter": key}
    if value == "*":
        return {"type": "isNotNull", "parameter": key}
    return {"type": "equals", "key": key, "value": value, **of_taxonomy}


def _joined(kind: str, parts: list[Predicate]) -> Predicate:
    return parts[0] if len(parts) == 1 else {"type": kind, "predicates": parts}
