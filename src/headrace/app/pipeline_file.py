"""A pipeline file, loaded, checked and compiled: the one way in for every verb."""

from __future__ import annotations

from pathlib import Path

from headrace.app.registry import check_source
from headrace.define.check import check, load
from headrace.define.problem import Problem
from headrace.model.errors import Invalid
from headrace.model.plan import Plan


def compile_file(path: Path) -> Plan | list[Problem]:
    """Return the plan of a pipeline file, or every fault that it has."""
    pipeline = load(path)
    if isinstance(pipeline, list):
        return pipeline
    result = check(pipeline)
    return (_source_problems(path, result) or result) if isinstance(result, Plan) else result


def require_plan(path: Path) -> Plan:
    """Return the plan of a pipeline file; `Invalid` with all its faults if it has any."""
    result = compile_file(path)
    if isinstance(result, Plan):
        return result
    listed = "\n".join(f"  {line}" for p in result for line in str(p).splitlines())
    number = "one fault" if len(result) == 1 else f"{len(result)} faults"
    raise Invalid(f"{path} has {number}\n{listed}", code="invalid_pipeline")


def _source_problems(path: Path, plan: Plan) -> list[Problem]:
    """Return what is wrong with sources' kinds and options, which their own classes declare."""
    problems = []
    for source in plan.sources:
        try:
            check_source(source)
        except Invalid as error:
            line = _line_of(path, source.name)
            problems.append(Problem(str(path), line, error.message, error.hint, error.code))
    return problems


def _line_of(path: Path, name: str) -> int:
    """Return the first line of a file that holds a quoted name; the first line if none does."""
    lines = path.read_text(encoding="utf-8").splitlines()
    quoted = (f'"{name}"', f"'{name}'")
    return next((n for n, line in enumerate(lines, 1) if any(q in line for q in quoted)), 1)
