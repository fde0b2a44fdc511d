"""Logarithmic buckets: quantiles within 1 % of the values, whatever the order of merges."""

from __future__ import annotations

import math

QUANTILE_ERROR = 0.01
_GAMMA = (1 + QUANTILE_ERROR) / (1 - QUANTILE_ERROR)
"""Ratio of a bucket's bounds (DDSketch, Masson et al. 2019): any value in a bucket is within
`QUANTILE_ERROR` of what stands for it."""

_BUCKET_OF_ONE = 40_000
"""Added to a bucket's number, so that the sign is left for the value's own: the smallest DOUBLE
lies 37,222 buckets below 1, the largest 35,486 above."""
_BUCKET_INFINITE = 100_000
_BUCKET_NAN = 100_001


def bucket_of(x: str) -> str:
    """Return SQL of a DOUBLE's bucket: numbers sort as values do."""
    number = (
        f"CAST(ceil(ln(abs({x})) / {math.log(_GAMMA)!r}::DOUBLE) AS INTEGER) + {_BUCKET_OF_ONE}"
    )
    return (
        f"CASE WHEN {x} = 0 THEN 0 WHEN isnan({x}) THEN {_BUCKET_NAN} "
        f"WHEN isinf({x}) THEN CAST(sign({x}) AS INTEGER) * {_BUCKET_INFINITE} "
        f"ELSE CAST(sign({x}) AS INTEGER) * ({number}) END"
    )


def bucket_value(b: str) -> str:
    """Return SQL of the value that stands for a bucket."""
    power = f"pow({_GAMMA!r}::DOUBLE, abs({b}) - {_BUCKET_OF_ONE})"
    return (
        f"CASE WHEN {b} = 0 THEN CAST(0 AS DOUBLE) "
        f"WHEN {b} = {_BUCKET_NAN} THEN CAST('nan' AS DOUBLE) "
        f"WHEN abs({b}) = {_BUCKET_INFINITE} THEN sign({b}) * CAST('inf' AS DOUBLE) "
        f"ELSE sign({b}) * {power} * {2 / (_GAMMA + 1)!r}::DOUBLE END"
    )
