"""Options that are declared once: check, help and reference pages all follow from the declaration.

Whoever takes options (a source, for one) declares a frozen dataclass whose fields are made by
`option`; `read_options` makes an instance of it from what a pipeline file says.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from headrace.model.errors import HeadraceError, Invalid

Scalar = str | int | float | bool | None
OptionsClass = TypeVar("OptionsClass")


def option(
    default: Scalar = None,
    *,
    doc: str,
    example: Scalar,
    required: bool = False,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    owner: bool = False,
) -> Any:  # noqa: ANN401 - a dataclass field stands where a value of any type is expected
    """Declare an option: a dataclass field with its documentation and its bounds.

    `doc` is a sentence for people, `unit` what a number counts, `at_least` and `at_most` what it
    may be, both included. A required option has no default. `owner` keeps an option to the pipeline
    file, because it reaches into the machine: files, the environment, an account of its owner.
    """
    about = {
        "doc": doc,
        "example": example,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "owner": owner,
    }
    if required:
        return dataclasses.field(metadata=about)
    return dataclasses.field(default=default, metadata=about)


class Declared(typing.NamedTuple):
    """An option as help and reference pages show it."""

    name: str
    type: str
    required: bool
    default: Scalar
    doc: str
    unit: str
    at_least: float | None
    at_most: float | None
    example: Scalar
    owner: bool


def declared(options: type) -> list[Declared]:
    """Return every option of a dataclass, in the order of its declaration."""
    kinds = typing.get_type_hints(options)
    return [
        Declared(
            name=f.name,
            type=" or ".join(k.__name__ for k in _kinds(kinds[f.name]) if k is not types.NoneType),
            required=f.default is dataclasses.MISSING,
            default=None if f.default is dataclasses.MISSING else f.default,
            **f.metadata,
        )
        for f in dataclasses.fields(options)
    ]


def read_options(
    options: type[OptionsClass], given: Mapping[str, Scalar], where: str
) -> OptionsClass:
    """Return an instance of the dataclass `options` from what was given.

    `where` names the owner in messages (`source "gbif"`). Raises `Invalid` that tells every fault
    at once: unknown and missing names, wrong types, numbers out of bounds, and whatever the
    dataclass itself refuses in `__post_init__`.
    """
    known = {d.name: d for d in declared(options)}
    kinds = typing.get_type_hints(options)
    faults = [_unknown(name, known) for name in given if name not in known]
    faults += [f"{d.name} is missing" for d in known.values() if d.required and d.name not in given]
    values = {}
    for name, value in given.items():
        if name not in known:
            continue
        values[name] = float(typing.cast("int", value)) if _widens(value, kinds[name]) else value
        faults += _faults(known[name], values[name], _kinds(kinds[name]))
    if faults:
        msg = f"The options of {where} cannot be used: {'; '.join(faults)}"
        raise Invalid(msg, hint=_hint(known, faults), code="invalid_options")
    try:
        return options(**values)
    except HeadraceError as refused:
        msg = f"The options of {where} cannot be used: {refused.message}"
        raise Invalid(msg, hint=refused.hint, code="invalid_options") from refused


def _kinds(annotation: Any) -> tuple[type, ...]:  # noqa: ANN401 - an annotation is any object
    return typing.get_args(annotation) or (annotation,)


def _widens(value: Scalar, annotation: Any) -> bool:  # noqa: ANN401 - as above
    kinds = _kinds(annotation)
    return type(value) is int and float in kinds and int not in kinds


def _faults(about: Declared, value: Scalar, kinds: tuple[type, ...]) -> list[str]:
    if type(value) not in kinds:
        return [f"{about.name} must be {about.type}, not {value!r}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if not math.isfinite(value):
        return [f"{about.name} must be a finite number, not {value}"]
    if about.at_least is not None and value < about.at_least:
        return [f"{about.name} must be at least {about.at_least:g}, not {value}"]
    if about.at_most is not None and value > about.at_most:
        return [f"{about.name} must be at most {about.at_most:g}, not {value}"]
    return []


def _unknown(name: str, known: Mapping[str, Declared]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} is unknown (did you mean {near[0]}?)" if near else f"{name} is unknown"


def _hint(known: Mapping[str, Declared], faults: list[str]) -> str:
    named = [d for d in known.values() if any(f.startswith(f"{d.name} ") for f in faults)]
    if not named:
        return f"the options are {', '.join(known)}"
    return "for example " + ", ".join(f"{d.name}={d.example!r}" for d in named)
