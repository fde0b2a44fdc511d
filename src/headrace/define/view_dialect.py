"""DuckDB's dialect for SQLGlot, reading and writing back every function call as it was.

SQLGlot knows many functions by their meaning and writes them as it sees fit: `log2(x)` becomes
`log(2, x)`, and `j ->> 'dwc:kingdom'`, a field's name, the path `$.dwc.kingdom`. A view must mean
exactly what its SQL says, so only aggregates, which are taken apart, are known here.
"""

from __future__ import annotations

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB

_KNOWN = frozenset(
    [
        "any_value",
        "approx_count_distinct",
        "approx_quantile",
        "arbitrary",
        "arg_max",
        "arg_min",
        "argmax",
        "argmin",
        "array_agg",
        "avg",
        "bool_and",
        "bool_or",
        "count",
        "count_if",
        "countif",
        "every",
        "first",
        "group_concat",
        "grouping",
        "grouping_id",
        "last",
        "list",
        "listagg",
        "max",
        "max_by",
        "mean",
        "median",
        "min",
        "min_by",
        "mode",
        "percentile_cont",
        "percentile_disc",
        "quantile",
        "quantile_cont",
        "quantile_disc",
        "stddev",
        "stddev_pop",
        "stddev_samp",
        "string_agg",
        "sum",
        "var_pop",
        "var_samp",
        "variance",
    ]
)


class ViewDialect(DuckDB):  # type: ignore[misc] # SQLGlot's own classes count as Any
    """DuckDB, with function calls left alone; see the module's words."""

    class Parser(DuckDB.Parser):  # type: ignore[misc] # as above
        """DuckDB's parser without the functions that are no aggregates."""

        FUNCTIONS = {  # noqa: RUF012 - SQLGlot declares it so
            name: build for name, build in DuckDB.Parser.FUNCTIONS.items() if name.lower() in _KNOWN
        }

    def to_json_path(self, path: exp.Expression | None) -> exp.Expression | None:
        """Return the path as it was written."""
        return path
