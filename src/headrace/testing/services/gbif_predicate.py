"""Predicates of GBIF downloads and searches, as tests of a collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.testing.services.collection import AnyOf, Condition, Test
from headrace.testing.services.gbif_terms import BY_FACET_NAME, PARAMETERS, Refused, parse

Predicate = dict[str, Any]


def test(predicate: Predicate) -> Test:
    """Return the test that a predicate stands for. Raises `Refused` for what is not known here."""
    match predicate:
        case {"type": "and", "predicates": parts}:
            return AnyOf((tuple(test(p) for p in parts),))
        case {"type": "or", "predicates": parts}:
            return AnyOf(tuple((test(p),) for p in parts))
        case {"type": "not", "predicate": part}:
            return AnyOf(((test(part),),), negated=True)
        case {"type": "in", "key": name, "values": values}:
            return AnyOf(tuple((_equals(name, str(value)),) for value in values))
        case {"type": "isNull" | "isNotNull" as kind, "parameter": name}:
            return Condition(_field(name), negated=kind == "isNull")
        case {"type": kind, "key": name, "value": value} if kind in COMPARED:
            return COMPARED[kind](name, str(value))
    raise Refused(f"Cannot parse the predicate of type {predicate.get('type')}")


def _field(name: str) -> str:
    if name not in BY_FACET_NAME:
        raise Refused(f"Cannot parse {name} into a known OccurrenceSearchParameter")
    return PARAMETERS[BY_FACET_NAME[name]]


def _equals(name: str, value: str) -> Test:
    field = _field(name)
    low, high = parse(field, value, first=True), parse(field, value, first=False)
    return Condition(field, (low,)) if low == high else Condition(field, low=low, high=high)


def _at_least(name: str, value: str) -> Test:
    return Condition(_field(name), low=parse(_field(name), value, first=True))


def _at_most(name: str, value: str) -> Test:
    return Condition(_field(name), high=parse(_field(name), value, first=False))


def _but_not(name: str, test_: Test) -> Test:
    """Return the test of having a value for which another does not hold."""
    return AnyOf(((Condition(_field(name)), AnyOf(((test_,),), negated=True)),))


COMPARED: dict[str, Callable[[str, str], Test]] = {
    "equals": _equals,
    "greaterThanOrEquals": _at_least,
    "lessThanOrEquals": _at_most,
    "greaterThan": lambda name, value: _but_not(name, _at_most(name, value)),
    "lessThan": lambda name, value: _but_not(name, _at_least(name, value)),
}
