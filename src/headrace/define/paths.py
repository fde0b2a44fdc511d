"""Paths of routes and queries: their syntax, their parameters, and which of them collide."""

from __future__ import annotations

import re
from collections.abc import Iterator

from headrace.define.problem import Faults, Place
from headrace.model.errors import Invalid

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[A-Za-z_][A-Za-z0-9_]*\}")
HOLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A parameter in a path, in a fixed field or in a query's SQL."""

BUILT_IN = ("/healthz", "/ready", "/metrics", "/docs", "/openapi.json")
_OWN = ("v1", "_")
"""First segments under which everything is Headrace's: its API and the dashboard's parts."""


def check_path(path: str) -> None:
    """Raise `Invalid` for a path that cannot be declared."""
    segments = _segments(path)
    if not path.startswith("/") or not all(_SEGMENT.fullmatch(s) for s in segments if path != "/"):
        raise Invalid(
            f"{path!r} is no path",
            hint="A path is / and segments of letters, digits and . _ ~ -; a parameter is one "
            "whole segment: /join_guild/{guild}.",
            code="bad_path",
        )
    names = HOLE.findall(path)
    if len(set(names)) < len(names):
        raise Invalid(f"{path!r} names a parameter twice", code="bad_path")
    if segments[0].lower() in _OWN or _is_hole(segments[0]):
        raise Invalid(
            f"{path!r} shadows paths that Headrace answers itself, such as /v1/topics",
            hint="Begin with another segment that is no parameter.",
            code="shadowed_path",
        )
    for own in BUILT_IN:
        if overlap(path, own):
            raise Invalid(
                f"{path!r} shadows {own}, which Headrace answers itself",
                hint=f"Choose another path; taken are {', '.join(BUILT_IN)} /v1/… and /_/….",
                code="shadowed_path",
            )


def overlap(one: str, other: str) -> bool:
    """Return whether some request could mean both paths."""
    a, b = _segments(one), _segments(other)
    return len(a) == len(b) and all(
        x == y or _is_hole(x) or _is_hole(y) for x, y in zip(a, b, strict=True)
    )


def check_overlaps(declared: list[tuple[Place, str]], faults: Faults) -> None:
    """Add a fault for each path that a path before it shadows."""
    for i, (place, path) in enumerate(declared):
        for before in _overlapping(path, [p for _, p in declared[:i]]):
            same = "is declared already" if path == before else f"is shadowed by {before!r}"
            faults.add(
                place,
                f"The path {path!r} {same}",
                hint="Let the paths differ in a segment that is no parameter.",
                code="shadowed_path",
            )


def _overlapping(path: str, others: list[str]) -> Iterator[str]:
    return (other for other in others if overlap(path, other))


def _segments(path: str) -> list[str]:
    return path.removeprefix("/").split("/")


def _is_hole(segment: str) -> bool:
    return segment.startswith("{")
