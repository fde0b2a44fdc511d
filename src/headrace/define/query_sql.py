"""Named queries: a SELECT over tables and views, bound for every choice that a caller has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from headrace.define.binder import Binder, Node, SqlFault, position, walk
from headrace.define.paths import HOLE
from headrace.define.pipeline import Parameter, ParameterKind, Query
from headrace.define.problem import nearest
from headrace.define.types import quoted, stored_type
from headrace.model import plan as plans
from headrace.model.errors import Invalid
from headrace.model.plan import Column, QueryParameter

COMBINATIONS_MAX = 1_000
"""Combinations of choices that are bound; more would make `check` slow."""

TAKEN = ("format", "at_least", "timeout")
"""Parameters of every query: the answer's format, and what it must contain, waited for how long."""

# A value of each kind, as a request's would be: an integer past 32 bits binds as a BIGINT.
_SAMPLES: dict[str, object] = {
    "string": "",
    "integer": 1 << 40,
    "number": 0.5,
    "boolean": True,
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
}


def splice(sql: str, choices: Mapping[str, str]) -> str:
    """Return SQL with each `{name}` replaced by the quoted name chosen for it."""
    return HOLE.sub(lambda m: quoted(choices[m[1]]) if m[1] in choices else m[0], sql)


def parameters_of(declared: Query) -> Iterator[QueryParameter]:
    """Yield a query's parameters; `Invalid` for one that makes no sense."""
    for name, given in declared.params.items():
        if name in TAKEN:
            raise Invalid(
                f"Parameter {name!r} is one that every query has",
                hint=f"Choose another name; taken are {', '.join(TAKEN)}.",
                code="bad_parameter",
            )
        parameter = given if isinstance(given, Parameter) else Parameter(given, None, True)
        kind, default = parameter.kind, parameter.default
        if isinstance(kind, str):
            if kind not in _SAMPLES:
                raise Invalid(
                    f"Parameter {name!r} has the unknown kind {kind!r}",
                    hint=f"Kinds: {', '.join(_SAMPLES)}, or a list of names to choose from.",
                    code="bad_parameter",
                )
            text = _text(name, kind, default)
            yield QueryParameter(name, cast("ParameterKind", kind), (), text, parameter.required)
            continue
        choices = tuple(kind)
        if not choices or not all(isinstance(c, str) and c for c in choices):
            raise Invalid(f"Parameter {name!r} has no names to choose from", code="bad_parameter")
        if default is not None and default not in choices:
            raise Invalid(
                f"Parameter {name!r} has the default {default!r}, which is none of its choices",
                hint=f"Choices: {', '.join(choices)}.",
                code="bad_parameter",
            )
        text = None if default is None else str(default)
        required = parameter.required
        yield QueryParameter(name, "choice", choices, default=text, required=required)


def _text(name: str, kind: str, default: object) -> str | None:
    """Return a default as a caller would write it in the query string."""
    if default is None:
        return None
    fits = {
        "string": isinstance(default, str),
        "integer": isinstance(default, int) and not isinstance(default, bool),
        "number": isinstance(default, int | float) and not isinstance(default, bool),
        "boolean": isinstance(default, bool),
        "timestamp": isinstance(default, str) and _is_time(default),
    }
    if not fits[kind]:
        hint = "A timestamp is RFC 3339 text with a zone." if kind == "timestamp" else ""
        message = f"Parameter {name!r} has the default {default!r}, which is no {kind}"
        raise Invalid(message, hint=hint, code="bad_parameter")
    return str(default).lower() if isinstance(default, bool) else str(default)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def compile_query(
    declared: Query, relations: Mapping[str, Sequence[Column]], binder: Binder
) -> plans.Query:
    """Return a query bound for every combination of choices; `SqlFault` or `Invalid` if it fails.

    `relations` are the tables and views that `binder` holds. The columns of the result are those of
    each parameter's default or first choice.
    """
    parameters = tuple(parameters_of(declared))
    sql = declared.sql.strip().rstrip(";").rstrip()
    choices = {p.name: p for p in parameters if p.type == "choice"}
    values = {p.name: p.type for p in parameters if p.type != "choice"}
    for hole in HOLE.finditer(sql):
        if hole[1] not in choices:
            raise SqlFault(
                f"{{{hole[1]}}} stands for no parameter with choices",
                hint=f'Declare it: params={{"{hole[1]}": ["a_column", "another"]}}; '
                "a value is written $name.",
                code="unknown_parameter",
                position=hole.start(),
            )
    unused = choices.keys() - {h[1] for h in HOLE.finditer(sql)}
    columns: tuple[Column, ...] = ()
    reads: set[str] = set()
    for chosen in _combinations(choices):
        spliced = splice(sql, chosen)
        tree = binder.parse(spliced)
        used = _values_of(tree)
        _check_values(used, values, tree)
        unused |= values.keys() - used
        reads |= _relations_of(tree, relations)
        samples = {name: _SAMPLES[values[name]] for name in used}
        outputs = binder.describe(spliced, samples)
        columns = columns or tuple(_output(name, kind) for name, kind in outputs)
    if unused:
        name = min(unused)
        raise Invalid(
            f"Parameter {name!r} is declared but not used",
            hint=f"Write {{{name}}} or ${name} in the SQL, or leave it out of params.",
            code="unused_parameter",
        )
    if not reads:
        raise Invalid("The query reads no table or view", code="bad_query")
    return plans.Query(declared.path, sql, parameters, tuple(sorted(reads)), columns)


def _combinations(choices: Mapping[str, QueryParameter]) -> Iterator[dict[str, str]]:
    """Yield every combination of choices, the one of the defaults first."""
    lists = [
        sorted(p.choices, key=lambda c, p=p: c != p.default)  # type: ignore[misc]
        for p in choices.values()
    ]
    combinations = itertools.product(*lists)
    for chosen in itertools.islice(combinations, COMBINATIONS_MAX):
        yield dict(zip(choices, chosen, strict=True))
    if next(combinations, None) is not None:
        raise Invalid(
            f"The parameters have more than {COMBINATIONS_MAX} combinations of choices",
            hint="Make several queries of it.",
            code="bad_parameter",
        )


def _values_of(tree: Node) -> set[str]:
    return {str(n["identifier"]) for n in walk(tree) if n.get("class") == "PARAMETER"}


def _check_values(used: set[str], values: Mapping[str, str], tree: Node) -> None:
    for name in sorted(used - values.keys()):
        node = next(n for n in walk(tree) if n.get("identifier") == name)
        raise SqlFault(
            f"${name} stands for no declared parameter",
            hint=nearest(name, values) or f'Declare it: params={{"{name}": "string"}}.',
            code="unknown_parameter",
            position=position(node),
        )


def _relations_of(tree: Node, relations: Mapping[str, Sequence[Column]]) -> set[str]:
    """Return the tables and views that a SELECT reads; `SqlFault` for anything else it names."""
    known = {name.lower(): name for name in relations}
    made = {
        entry["key"].lower() for n in walk(tree) for entry in n.get("cte_map", {}).get("map", ())
    }
    found = set()
    for node in walk(tree):
        if node.get("type") != "BASE_TABLE":
            continue
        name = node["table_name"]
        if name.lower() in known and "schema_name" not in node:
            found.add(known[name.lower()])
        elif name.lower() not in made:
            raise SqlFault(
                f"There is no table or view {name!r}",
                hint=nearest(name, relations),
                code="unknown_relation",
                position=position(node),
            )
    return found


def _output(name: str, kind: object) -> Column:
    try:
        return Column(name, stored_type(kind))
    except Invalid:  # an INTERVAL or TIME can be answered, though no table stores it
        return Column(name, str(kind))
