"""A pipeline file, loaded, checked and compiled: the one way in for every verb."""

from __future__ import annotations

from pathlib import Path

from headrace.app.registry import SOURCES, source_class
from headrace.define.check import check_file
from headrace.define.problem import Problem
from headrace.model.errors import Invalid
from headrace.model.plan import Plan


def compile_file(path: Path) -> Plan | list[Problem]:
    """Return the plan of a pipeline file, or every fault that it has."""
    return check_file(path, {kind: source_class(kind).Options for kind in SOURCES})


def require_plan(path: Path) -> Plan:
    """Return the plan of a pipeline file; `Invalid` with all its faults if it has any."""
    result = compile_file(path)
    if isinstance(result, Plan):
        return result
    listed = "\n".join(f"  {line}" for p in result for line in str(p).splitlines())
    number = "one fault" if len(result) == 1 else f"{len(result)} faults"
    raise Invalid(f"{path} has {number}\n{listed}", code="invalid_pipeline")
