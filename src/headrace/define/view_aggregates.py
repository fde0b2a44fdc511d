"""Every aggregate that a view can keep up to date: what of it is state, and its final value.

Each one's state can be merged in any order and grouping with the same result, bit for bit. Over a
table whose rows may be taken out again it is counts and sums only, which can be negated. That is
why sums of DOUBLE are kept as integers: a DOUBLE is a 53-bit integer times a power of two, so
values whose exponents share a block of 40 are scaled to integers below 2^94 and added up exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.define.view_buckets import bucket_of, bucket_value
from headrace.define.view_parse import refuse
from headrace.define.view_refused import check_call, unknown
from headrace.define.view_state import StateBuilder
from headrace.define.view_types import (
    FLOATS,
    INTEGERS,
    WIDE_INTEGERS,
    decimal_digits,
    is_nested,
    kept_type,
)
from headrace.model.errors import Invalid
from headrace.model.plan import Column

THETA_K = 4096
"""Hashes kept a key: exact below, and from there a standard error of 1/√(k-1), 1.6 %."""

_BIN_EXPONENTS, _BIN_FIRST_EXPONENT = 40, -12
"""A bin of exact sums holds 40 exponents, so its integers stay below 2^94 and 2^32 rows fit 126
bits; the bin 0, from 2^-12 to 2^28, is the only one that most columns need."""
_BIN_INFINITE, _BIN_MINUS_INFINITE, _BIN_NAN = 100, 101, 102

_LIMB = 1 << 40
"""Squares of 64-bit integers are summed in two limbs, since their sum passes 128 bits."""

_SUM_128 = "DECIMAL(38,0)"


@dataclass(frozen=True)
class Call:
    """An aggregate as it stands in a view's SQL; all SQL is over the table's rows."""

    name: str
    """The name of DuckDB, in lower case."""
    sql: str
    arguments: tuple[str, ...]
    fractions: tuple[float, ...] | None
    """Of a quantile; `many` says whether they were a list."""
    many: bool
    distinct: bool
    order: tuple[str, bool] | None
    """ORDER BY: expression, and whether descending."""
    where: str | None
    """FILTER."""
    type: str
    """The type that DuckDB gives the call."""


class AggregateCompiler:
    """Compiles the aggregates of one view into its state."""

    def __init__(
        self, state: StateBuilder, type_of: Callable[[str], str], columns: Sequence[str]
    ) -> None:
        """`type_of` gives the type of a row expression; `columns` are the table's."""
        self._state = state
        self._type_of = type_of
        self._columns = columns
        self.reads: set[str] = set()
        """Columns that the state needs beside those in the SQL."""

    def value(self, call: Call) -> str:
        """Return the name of the final relation's column with a call's value."""
        compile_call = self._compilers().get(call.name)
        if compile_call is None:
            raise unknown(call.name)
        check_call(
            call.name,
            distinct=call.distinct,
            ordered=call.order is not None,
            retracts=self._state.retracts,
        )
        return self._state.derive(f"CAST({compile_call(call)} AS {call.type})")

    def _compilers(self) -> dict[str, Callable[[Call], str]]:
        return {
            "count": self._count,
            "count_star": self._count,
            "count_if": self._count_if,
            "countif": self._count_if,
            "min": self._extreme,
            "max": self._extreme,
            **dict.fromkeys(["bool_and", "bool_or", "every"], self._boolean),
            **dict.fromkeys(["sum", "fsum", "kahan_sum", "sumkahan"], self._sum),
            **dict.fromkeys(["avg", "mean", "favg"], self._avg),
            **dict.fromkeys(
                ["stddev", "stddev_samp", "stddev_pop", "variance", "var_samp", "var_pop"],
                self._spread,
            ),
            "approx_count_distinct": self._theta,
            **dict.fromkeys(
                ["median", "quantile", "quantile_cont", "quantile_disc", "approx_quantile"],
                self._quantile,
            ),
            "first": self._ordered,
            "last": self._ordered,
            **dict.fromkeys(
                ["arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"], self._ordered_by
            ),
        }

    def _filter(self, *conditions: str | None) -> str:
        given = [c for c in conditions if c]
        return f" FILTER (WHERE {' AND '.join(given)})" if given else ""

    def _where(self, call: Call) -> str | None:
        return self._state.input(f"CAST({call.where} AS BOOLEAN)") if call.where else None

    def _argument(self, call: Call) -> tuple[str, str]:
        """Return base column and type of the first argument."""
        sql = call.arguments[0]
        return self._state.input(sql), self._type_of(sql)

    def _kept(self, call: Call, sql: str) -> tuple[str, str]:
        """Return a row expression in the type in which it is kept, as base column and type.

        Zeros of DOUBLE lose their sign, since 0.0 = -0.0 and state must not hold both.
        """
        original = self._type_of(sql)
        kept = kept_type(original)
        if kept is None:
            raise refuse(
                f"{call.name} of {original}",
                "CAST the argument, to VARCHAR for instance, or take epoch(x) of an interval",
            )
        if original in FLOATS:
            return self._state.input(f"CASE WHEN {sql} = 0 THEN 0 ELSE {sql} END"), kept
        return self._state.input(sql if kept == original else f"CAST({sql} AS {kept})"), kept

    def _count_of(self, column: str | None, where: str | None) -> str:
        counted = f"count({column or '*'}){self._filter(where)}"
        return self._state.group(counted, "coalesce(sum({}), 0)", "BIGINT")

    def _count(self, call: Call) -> str:
        if not call.distinct:
            where = self._where(call)
            return self._count_of(self._argument(call)[0] if call.arguments else None, where)
        part = self._values(call, call.arguments[0], "count(DISTINCT …)")
        return f"coalesce({self._state.take(part, 'count(*)')}, 0)"

    def _values(self, call: Call, sql: str, what: str) -> str:
        """Return the part with each value of an expression and the number of its rows."""
        where = self._where(call)
        x, kept = self._kept(call, sql)
        if is_nested(kept):
            raise refuse(f"{what} of a list or struct", "CAST the argument to VARCHAR")
        given = " AND ".join(filter(None, [f"{x} IS NOT NULL", where]))
        return self._state.counted(
            "distinct", Column("x", kept), x, Column("n", "BIGINT"), "count(*)", given
        )

    def _count_if(self, call: Call) -> str:
        # Like DuckDB's, NULL where every condition is NULL.
        condition = self._state.input(f"CAST({call.arguments[0]} AS BOOLEAN)")
        where = self._where(call)
        return self._sum_of(f"CAST({condition} AS INTEGER)", condition, where, _SUM_128)

    def _sum_of(self, sql: str, x: str, where: str | None, kind: str) -> str:
        """Return a sum that is NULL where no row has a value of the base column `x`."""
        total = self._state.total(f"sum({sql}){self._filter(where)}", kind)
        if not self._state.retracts:
            return total
        return f"CASE WHEN {self._count_of(x, where)} > 0 THEN {total} END"

    def _extreme(self, call: Call) -> str:
        if len(call.arguments) > 1:
            raise refuse(f"{call.name}(x, n)", "keep the one extreme, or group by x")
        if self._state.retracts:
            part = self._values(call, call.arguments[0], call.name)
            return self._state.take(part, f"{call.name}({part}_x)")
        x, kept = self._kept(call, call.arguments[0])
        partial = f"{call.name}({x}){self._filter(self._where(call))}"
        return self._state.group(partial, f"{call.name}({{}})", kept)

    def _boolean(self, call: Call) -> str:
        function = "bool_and" if call.name == "every" else call.name
        x, kept = self._kept(call, call.arguments[0])
        where = self._where(call)
        if not self._state.retracts:
            partial = f"{function}({x}){self._filter(where)}"
            return self._state.group(partial, f"{function}({{}})", kept)
        true = self._state.total(f"count(*){self._filter(x, where)}", "BIGINT")
        false = self._state.total(f"count(*){self._filter(f'NOT {x}', where)}", "BIGINT")
        value = f"{false} = 0" if function == "bool_and" else f"{true} > 0"
        return f"CASE WHEN {true} + {false} > 0 THEN {value} END"

    def _sum(self, call: Call) -> str:
        x, kind = self._argument(call)
        where = self._where(call)
        digits = decimal_digits(kind)
        if digits and call.type != "DOUBLE":
            return self._sum_of(x, x, where, f"DECIMAL(38,{digits[1]})")
        if kind in INTEGERS | WIDE_INTEGERS | {"BOOLEAN"} and call.type != "DOUBLE":
            return self._sum_of(x, x, where, _SUM_128)
        self._require_number(call, kind)
        n, total = self._exact_sum(f"CAST({call.arguments[0]} AS DOUBLE)", where)
        return f"CASE WHEN {n} > 0 THEN {total} END"

    def _require_number(self, call: Call, kind: str) -> None:
        if kind not in INTEGERS | WIDE_INTEGERS | FLOATS and decimal_digits(kind) is None:
            raise refuse(
                f"{call.name} of {kind}", "take a number of it, such as epoch(x), or CAST it"
            )

    def _exact_sum(self, sql: str, where: str | None) -> tuple[str, str]:
        """Return (count, sum) of a DOUBLE row expression; the sum is 0 where all values are.

        A bin holds Σ x·2^(53 - its first exponent) as an integer; infinities and NaN are counted in
        bins of their own. The bins are added up in DOUBLE, in a fixed order.
        """
        x = self._state.input(sql)
        exponent = f"floor(log2(abs({x}))) - ({_BIN_FIRST_EXPONENT})"
        bin_of = (
            f"CASE WHEN isnan({x}) THEN {_BIN_NAN} "
            f"WHEN isinf({x}) AND {x} > 0 THEN {_BIN_INFINITE} "
            f"WHEN isinf({x}) THEN {_BIN_MINUS_INFINITE} "
            f"ELSE CAST(floor(({exponent}) / {_BIN_EXPONENTS}.0) AS INTEGER) END"
        )
        shift = f"({53 - _BIN_FIRST_EXPONENT} - {_BIN_EXPONENTS} * {{item}})"
        scaled = f"CAST({_times_power_of_two(x, shift)} AS HUGEINT)"
        mantissa = f"sum(CASE WHEN {{item}} < {_BIN_INFINITE} THEN {scaled} ELSE 1 END)"
        given = " AND ".join(filter(None, [f"{x} <> 0", where]))
        part = self._state.counted(
            "bins", Column("b", "INTEGER"), bin_of, Column("m", _SUM_128), mantissa, given
        )
        b, m = f"{part}_b", f"{part}_m"
        back = f"({_BIN_EXPONENTS} * {b} - {53 - _BIN_FIRST_EXPONENT})"
        value = _times_power_of_two(f"CAST(CAST({m} AS HUGEINT) AS DOUBLE)", back)
        # An ordered sum is slow, so the bin that nearly all keys have is not part of one.
        below = self._state.take(part, f"sum({value} ORDER BY {b}) FILTER (WHERE {b} < 0)")
        middle = self._state.take(part, f"max({value}) FILTER (WHERE {b} = 0)")
        finite_above = f"{b} > 0 AND {b} < {_BIN_INFINITE}"
        above = self._state.take(part, f"sum({value} ORDER BY {b}) FILTER (WHERE {finite_above})")
        flags = f"CASE {b} WHEN {_BIN_INFINITE} THEN 1 WHEN {_BIN_MINUS_INFINITE} THEN 2"
        specials = self._state.take(part, f"bit_or({flags} WHEN {_BIN_NAN} THEN 4 END)")
        finite = " + ".join(f"coalesce({v}, CAST(0 AS DOUBLE))" for v in (below, middle, above))
        total = self._state.derive(
            f"CASE WHEN {specials} IS NULL THEN {finite} "
            f"WHEN {specials} = 1 THEN CAST('inf' AS DOUBLE) "
            f"WHEN {specials} = 2 THEN CAST('-inf' AS DOUBLE) "
            "ELSE CAST('nan' AS DOUBLE) END"
        )
        return self._count_of(x, where), total

    def _avg(self, call: Call) -> str:
        x, kind = self._argument(call)
        where = self._where(call)
        self._require_number(call, kind)
        if kind in FLOATS:
            n, total = self._exact_sum(f"CAST({call.arguments[0]} AS DOUBLE)", where)
            return f"CASE WHEN {n} > 0 THEN {total} / {n} END"
        digits = decimal_digits(kind)
        kept = f"DECIMAL(38,{digits[1]})" if digits else _SUM_128
        total = self._state.total(f"sum({x}){self._filter(where)}", kept)
        n = self._count_of(x, where)
        number = (
            f"CAST({total} AS DOUBLE)" if digits else f"CAST(CAST({total} AS HUGEINT) AS DOUBLE)"
        )
        return f"CASE WHEN {n} > 0 THEN {number} / {n} END"

    def _spread(self, call: Call) -> str:
        kind = self._type_of(call.arguments[0])
        self._require_number(call, kind)
        where = self._where(call)
        digits = decimal_digits(kind)
        if kind in INTEGERS or (digits and digits[0] <= 18):  # noqa: PLR2004 - fits 64 bits
            n, squares = self._integer_squares(call.arguments[0], digits, where)
        else:
            n, squares = self._double_squares(f"CAST({call.arguments[0]} AS DOUBLE)", where)
        population = call.name.endswith("_pop")
        variance = (
            f"CASE WHEN {n} > 0 THEN {squares} / {n} END"
            if population
            else f"CASE WHEN {n} > 1 THEN {squares} / ({n} - 1) END"
        )
        return f"sqrt({variance})" if call.name.startswith("stddev") else variance

    def _double_squares(self, sql: str, where: str | None) -> tuple[str, str]:
        """Return count and Σ(x - mean)² of DOUBLEs, from exact sums of x and of x², rounded.

        Loses digits where the mean is many orders of magnitude above the deviation.
        """
        n, total = self._exact_sum(sql, where)
        _, squares = self._exact_sum(f"({sql}) * ({sql})", where)
        mean = self._state.derive(f"{total} / {n}")
        return n, f"greatest({squares} - {total} * {mean}, 0)"

    def _integer_squares(
        self, sql: str, digits: tuple[int, int] | None, where: str | None
    ) -> tuple[str, str]:
        """Return count and Σ(x - mean)² of integers or decimals, exact to the last division.

        With q the mean rounded to an integer and r = Σx - n·q, Σ(x - q)² = Σx² - q·(Σx + r), an
        integer, and Σ(x - mean)² = Σ(x - q)² - r²/n, where |r| ≤ n/2, so nothing cancels. The
        product is taken in limbs of 40 bits; each intermediate value fits 128.
        """
        scale = 10 ** digits[1] if digits else 1
        whole = f"({sql}) * CAST({scale} AS DECIMAL({len(str(scale))},0))" if digits else sql
        x = self._state.input(f"CAST({whole} AS HUGEINT)")
        given = self._filter(where)
        add = self._state.total
        n = self._count_of(x, where)
        s = self._state.derive(f"CAST({add(f'sum({x}){given}', _SUM_128)} AS HUGEINT)")
        high = add(f"sum({x} * {x} // {_LIMB}){given}", _SUM_128)
        low = add(f"sum({x} * {x} % {_LIMB}){given}", _SUM_128)
        step = self._state.derive
        q = step(f"CASE WHEN {n} > 0 THEN sign({s}) * ((2 * abs({s}) + {n}) // (2 * {n})) END")
        r = step(f"{s} - {q} * {n}")
        t_low = step(f"((({s} + {r}) % {_LIMB}) + {_LIMB}) % {_LIMB}")
        t_high = step(f"({s} + {r} - {t_low}) // {_LIMB}")
        rest = step(f"CAST({low} AS HUGEINT) - {q} * {t_low}")
        rest_low = step(f"(({rest} % {_LIMB}) + {_LIMB}) % {_LIMB}")
        top = step(f"CAST({high} AS HUGEINT) - {q} * {t_high} + ({rest} - {rest_low}) // {_LIMB}")
        around_q = step(f"CAST({top} AS DOUBLE) * {_LIMB}e0 + CAST({rest_low} AS DOUBLE)")
        exact = f"{around_q} - CAST({r} AS DOUBLE) * CAST({r} AS DOUBLE) / {n}"
        return n, f"(({exact}) / {scale * scale}e0)"

    def _theta(self, call: Call) -> str:
        """Keep the smallest 64-bit hashes; their density tells how many distinct values there are.

        The hash is the first half of MD5 over the value's text, the same on every machine and in
        every version, shifted to fit BIGINT.
        """
        sql = call.arguments[0]
        kind = self._type_of(sql)
        if kind in FLOATS:
            as_text = f"CAST(CAST(CASE WHEN {sql} = 0 THEN 0 ELSE {sql} END AS DOUBLE) AS VARCHAR)"
        elif kind == "BLOB":
            as_text = f"hex({sql})"
        elif kind.startswith("TIMESTAMP"):
            as_text = f"CAST(epoch_us({sql}) AS VARCHAR)"
        else:
            as_text = f"CAST({sql} AS VARCHAR)"
        x = self._state.input(as_text)
        given = " AND ".join(filter(None, [f"{x} IS NOT NULL", self._where(call)]))
        half = str(1 << 63)
        hashed = (
            f"CAST(CAST(md5_number_lower({x}) AS HUGEINT) - CAST('{half}' AS HUGEINT) AS BIGINT)"
        )
        part = self._state.smallest("hashes", Column("h", "BIGINT"), hashed, given, THETA_K)
        density = f"((CAST(max({part}_h) AS DOUBLE) + {half}e0) / {1 << 64}e0)"
        value = self._state.take(
            part,
            f"CASE WHEN count(*) < {THETA_K} THEN count(*) "
            f"ELSE CAST(round({THETA_K - 1} / {density}) AS BIGINT) END",
        )
        return f"coalesce({value}, 0)"

    def _quantile(self, call: Call) -> str:
        kind = self._type_of(call.arguments[0])
        self._require_number(call, kind)
        fractions = (0.5,) if call.name == "median" else call.fractions
        if not fractions or not all(0 <= q <= 1 for q in fractions):
            raise Invalid(
                f"{call.sql}: a quantile's place is a number from 0 to 1",
                hint="quantile_cont(x, 0.95)",
                code="sql",
            )
        continuous = call.name in {"median", "quantile_cont"}
        if self._state.retracts:
            return self._quantile_of_values(call, kind, fractions, continuous=continuous)
        where = self._where(call)
        x = self._state.input(f"CAST({call.arguments[0]} AS DOUBLE)")
        lowest = self._state.group(f"min({x}){self._filter(where)}", "min({})", "DOUBLE")
        highest = self._state.group(f"max({x}){self._filter(where)}", "max({})", "DOUBLE")
        given = " AND ".join(filter(None, [f"{x} IS NOT NULL", where]))
        part = self._state.counted(
            "buckets",
            Column("b", "INTEGER"),
            bucket_of(x),
            Column("n", "BIGINT"),
            "count(*)",
            given,
        )
        exact = {0.0: lowest, 1.0: highest}
        values = []
        for q in fractions:
            value = self._quantile_value(part, "b", bucket_value, q, continuous=continuous)
            values.append(exact.get(q, f"greatest(least({value}, {highest}), {lowest})"))
        if not call.many:
            return values[0]
        return f"CASE WHEN {lowest} IS NOT NULL THEN [{', '.join(values)}] END"

    def _quantile_of_values(
        self, call: Call, kind: str, fractions: Sequence[float], *, continuous: bool
    ) -> str:
        """Take quantiles of all values, exactly.

        Buckets alone would not know the extremes once rows are taken out, and to know them all
        values must be kept.
        """
        sql = call.arguments[0] if kind == "DOUBLE" else f"CAST({call.arguments[0]} AS DOUBLE)"
        part = self._values(call, sql, call.name)
        values = [self._quantile_value(part, "x", str, q, continuous=continuous) for q in fractions]
        if not call.many:
            return values[0]
        lowest = self._state.take(part, f"min({part}_x)")
        return f"CASE WHEN {lowest} IS NOT NULL THEN [{', '.join(values)}] END"

    def _quantile_value(
        self, part: str, item: str, value_of: Callable[[str], str], q: float, *, continuous: bool
    ) -> str:
        """Return a value of the final relation: what stands for the item of a part at a rank.

        Between two ranks quantile_cont draws a line, as DuckDB's does over the values themselves.
        """
        keys = [c.name for c in self._state.key_columns]
        by = f"PARTITION BY {', '.join(keys)}" if keys else ""
        source = (
            f"(SELECT *, sum({part}_n) OVER ({by} ORDER BY {part}_{item}) AS upto,"
            f" sum({part}_n) OVER ({by}) AS total FROM {part})"
        )
        if continuous:
            rank = f"{q!r}::DOUBLE * (total - 1)"
            low, high = f"floor({rank})", f"ceil({rank})"
        else:
            low = high = f"greatest(ceil({q!r}::DOUBLE * total) - 1, 0)"
        value = value_of(f"{part}_{item}")
        below = self._state.take(part, f"min({value}) FILTER (WHERE upto > {low})", source)
        if not continuous:
            return below
        above = self._state.take(part, f"min({value}) FILTER (WHERE upto > {high})", source)
        share = self._state.take(part, f"any_value({rank} - {low})", source)
        between = f"{below} + ({above} - {below}) * {share}"
        return f"CASE WHEN {below} = {above} THEN {below} ELSE {between} END"

    def _ordered(self, call: Call) -> str:
        order, descending = call.order or ("", False)
        if not order:
            order = self._system("received_at")
        o, order_type = self._kept(call, order)
        nulls_last = f"{o} IS NOT NULL" if descending else f"{o} IS NULL"
        first = call.name == "first"
        return self._pick(
            call,
            "min" if first != descending else "max",
            o,
            order_type,
            nulls_last,
            self._where(call),
        )

    def _ordered_by(self, call: Call) -> str:
        if len(call.arguments) != 2:  # noqa: PLR2004 - a value and what it is ordered by
            raise refuse(f"{call.name}(x, y, n)", "keep the one row, or group by x")
        o, order_type = self._kept(call, call.arguments[1])
        x, _ = self._kept(call, call.arguments[0])
        given = [f"{x} IS NOT NULL", f"{o} IS NOT NULL", self._where(call)]
        function = "min" if "min" in call.name else "max"
        return self._pick(call, function, o, order_type, "false", " AND ".join(filter(None, given)))

    def _pick(
        self, call: Call, function: str, o: str, order_type: str, nulls: str, where: str | None
    ) -> str:
        """Keep the least or greatest (nulls, order, event_id, value): a total order of rows."""
        x, kept = self._kept(call, call.arguments[0])
        e = self._state.input(self._system("event_id"))
        packed = f"struct_pack(z := {nulls}, o := {o}, e := {e}, v := {x})"
        kind = f'STRUCT("z" BOOLEAN, "o" {order_type}, "e" VARCHAR, "v" {kept})'
        partial = f"{function}({packed}){self._filter(where)}"
        return f"{self._state.group(partial, f'{function}({{}})', kind)}.v"

    def _system(self, name: str) -> str:
        if name not in self._columns:
            raise Invalid(
                f"first, last, arg_min and arg_max need the column {name}, which the table lacks",
                hint="the system columns are part of every table",
                code="unknown_column",
            )
        self.reads.add(name)
        return f'"{name}"'


def _times_power_of_two(x: str, exponent: str) -> str:
    """Return SQL of x·2^exponent, in two steps since 2^exponent alone may overflow."""
    half = f"{exponent} // 2"
    return f"{x} * pow(2.0, {half}) * pow(2.0, {exponent} - {half})"
