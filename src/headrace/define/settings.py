"""A pipeline's options and a view's windows, from what people write to numbers."""

from __future__ import annotations

from headrace.define.duration import microseconds, seconds
from headrace.define.pipeline import Settings, Windows
from headrace.define.problem import Faults, Place
from headrace.model.errors import Invalid
from headrace.model.plan import Options, Window

HOPS_MAX = 1_000
"""Windows that one row may be in."""


def compile_options(settings: Settings, place: Place, faults: Faults) -> Options | None:
    """Return the options, or None with at least one fault added."""
    before = len(faults.problems)
    for name in ("epoch_bytes_max", "epoch_records_max"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            faults.add(place, f"{name} is at least 1, not {value}", code="bad_option")
    lengths_s = {}
    for name in ("every", "horizon", "log_retention"):
        with faults.collect(place):
            lengths_s[name] = seconds(getattr(settings, name))
    if len(faults.problems) > before:
        return None
    return Options(
        every_s=lengths_s["every"],
        epoch_bytes_max=settings.epoch_bytes_max,
        epoch_records_max=settings.epoch_records_max,
        horizon_s=lengths_s["horizon"],
        log_retention_s=lengths_s["log_retention"],
        stop_on_dead=settings.stop_on_dead,
    )


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
