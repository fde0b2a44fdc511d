"""Aggregates that no view can keep up to date, and what to write instead."""

from __future__ import annotations

from headrace.define.view_parse import refuse
from headrace.model.errors import Invalid

_BY_VALUE = "GROUP BY with the value as a key too, and do the rest where the view is read"

_INSTEAD = {
    "any_value": "min(x), or first(x), which takes the earliest row",
    "arbitrary": "min(x), or first(x), which takes the earliest row",
    "mode": _BY_VALUE,
    "string_agg": _BY_VALUE,
    "listagg": _BY_VALUE,
    "group_concat": _BY_VALUE,
    "array_agg": _BY_VALUE,
    "list": _BY_VALUE,
    "histogram": _BY_VALUE,
    "approx_top_k": _BY_VALUE,
    "mad": "quantile_cont(x, [0.25, 0.75])",
    "reservoir_quantile": "approx_quantile(x, q)",
    "sum_no_overflow": "sum(x)",
}
_SUPPORTED = (
    "count, sum, avg, min, max, bool_and, bool_or, stddev, variance, count(DISTINCT x), "
    "approx_count_distinct, median, quantile_cont, quantile_disc, first, last, arg_min, arg_max"
)

_GONE = "a row may be taken out, and the one before it is not kept: "
_FORGETTING = {
    **dict.fromkeys(
        ["first", "last"], f"{_GONE}take min(x) or max(x), or GROUP BY with the value as a key too"
    ),
    **dict.fromkeys(
        ["arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"],
        f"{_GONE}take min(y) or max(y), and look the row up in the table",
    ),
    "approx_count_distinct": "a row may be taken out, which a sketch does not forget: "
    "count(DISTINCT x) is exact and goes down",
}
"""Aggregates whose state does not have all that it would need once rows are taken out."""

_DISTINCT = frozenset({"count", "min", "max", "bool_and", "bool_or"})


def unknown(name: str) -> Invalid:
    """Return the error for an aggregate that has no compiler, by DuckDB's name."""
    hint = _INSTEAD.get(name, "")
    shown = "string_agg" if name == "listagg" else name
    return refuse(shown, f"use {hint}" if hint else f"what can be maintained: {_SUPPORTED}")


def check_call(name: str, *, distinct: bool, ordered: bool, retracts: bool) -> None:
    """Raise `Invalid` for an aggregate that is kept up to date, but not as it is written.

    `retracts` says whether rows may be taken out again.
    """
    if retracts and name in _FORGETTING:
        raise refuse(f"{name} over a table with a key", _FORGETTING[name])
    if distinct and name not in _DISTINCT:
        raise refuse(f"{name}(DISTINCT …)", "only count(DISTINCT x) is kept exactly")
    if ordered and name not in {"first", "last"}:
        raise refuse(f"ORDER BY in {name}", "leave it out; first and last take ORDER BY")
