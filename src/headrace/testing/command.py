"""`headrace test`: cases in, mismatches out. It stands here because it runs the test kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from headrace.app.cli.options import json_option, pipeline_argument
from headrace.app.cli.printing import console, print_json
from headrace.app.pipeline_file import require_plan
from headrace.model.errors import Invalid
from headrace.testing.kit import Mismatch, read_case, run_case

FOLDER = "tests"
ROWS_SHOWN = 10


@click.command()
@pipeline_argument
@click.argument("cases", nargs=-1, type=click.Path(path_type=Path, exists=True))
@json_option
def test(pipeline: Path, cases: tuple[Path, ...], *, as_json: bool) -> int:
    """Run the JSON cases of a pipeline: records in, tables and views out, on a virtual clock.

    CASES are files or folders; by default the folder `tests` beside the pipeline file. Status 1 if
    any case fails.
    """
    plan = require_plan(pipeline)
    results = [(path, run_case(plan, read_case(path))) for path in _files(pipeline, cases)]
    failed = sum(bool(mismatches) for _, mismatches in results)
    if as_json:
        print_json([_plain(path, mismatches) for path, mismatches in results])
    else:
        for path, mismatches in results:
            _print(path, mismatches)
        console().print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _files(pipeline: Path, cases: tuple[Path, ...]) -> list[Path]:
    given = cases or (pipeline.parent / FOLDER,)
    found = [f for p in given for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    if not found or not all(f.is_file() for f in found):
        raise Invalid(
            f"There are no cases at {', '.join(map(str, given))}",
            hint='a case is a file {"records": {"topic": [...]}, "expect": {"table": [...]}}',
            code="no_cases",
        )
    return found


def _plain(path: Path, mismatches: list[Mismatch]) -> dict[str, Any]:
    found = [msgspec.to_builtins(m) for m in mismatches]
    return {"case": str(path), "passed": not found, "mismatches": found}


def _print(path: Path, mismatches: list[Mismatch]) -> None:
    out = console()
    mark = "[bold red]failed[/]" if mismatches else "[green]passed[/]"
    out.print(f"{mark} {path}")
    for mismatch in mismatches:
        for word, rows in (("missing", mismatch.missing), ("unexpected", mismatch.unexpected)):
            for row in rows[:ROWS_SHOWN]:
                text = msgspec.json.encode(row).decode()
                out.print(f"  {mismatch.output}: {word} {text}", markup=False, soft_wrap=True)
            if len(rows) > ROWS_SHOWN:
                out.print(f"  {mismatch.output}: {len(rows) - ROWS_SHOWN} more {word}")
