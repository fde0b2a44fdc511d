"""A pipeline's options and a view's windows, from what people write to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from headrace.define.duration import microseconds, seconds
from headrace.define.pipeline import Length, Scalar, Windows
from headrace.define.problem import Faults, Place, nearest
from headrace.model.errors import Invalid
from headrace.model.options import declared, read_options
from headrace.model.pipeline_options import Options
from headrace.model.plan import Window

HOPS_MAX = 1_000
"""Windows that one row may be in."""


def option_name(name: str) -> str:
    """Return the name under which users give an option: a length of time says its own unit."""
    return name.removesuffix("_s")


def compile_options(
    given: Mapping[str, Length | Scalar | None], place: Place, faults: Faults
) -> Options | None:
    """Return the options, or None with at least one fault added."""
    known = {option_name(d.name): d.name for d in declared(Options)}
    values: dict[str, Scalar | None] = {}
    before = len(faults.problems)
    for name, value in given.items():
        with faults.collect(place):
            if name not in known:
                raise Invalid(
                    f"A pipeline has no option {name!r}",
                    hint=nearest(name, known),
                    code="invalid_options",
                )
            option = known[name]
            # `seconds` says what is wrong with whatever is no length of time.
            if option != name:
                values[option] = seconds(value)  # type: ignore[arg-type]
            elif isinstance(value, timedelta):
                values[option] = str(value)
            else:
                values[option] = value
    if len(faults.problems) == before:
        with faults.collect(place):
            return read_options(Options, values, "the pipeline")
    return None


def compile_window(windows: Windows) -> Window:
    """Return a view's windows; `Invalid` for lengths that make no sense."""
    size = microseconds(windows.size)
    every = microseconds(windows.every)
    if size < 1 or every < 1:
        raise Invalid("A window has a length and a step above zero", code="bad_window")
    if every > size:
        raise Invalid(
            "The windows leave gaps: the step is longer than a window",
            hint="Let `every` be at most the size.",
            code="bad_window",
        )
    if size > every * HOPS_MAX:
        raise Invalid(
            f"A row would be in more than {HOPS_MAX} windows",
            hint="Make the step longer or the windows shorter.",
            code="bad_window",
        )
    return Window(windows.on, size, every, microseconds(windows.lateness))
