"""Write `docs/reference` from the code: `make docs`. A test compares the pages with what is there.

Nothing is told here that is not declared somewhere: verbs by click, HTTP paths by the OpenAPI
document of a made-up pipeline, options by their dataclasses, metrics where they are named.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import headrace
from headrace.app.cli.main import cli
from headrace.app.registry import SOURCES, source_class
from headrace.collect.limits import Limits
from headrace.model import plan as plans
from headrace.model.failpoint import FAILPOINTS
from headrace.model.options import declared
from headrace.model.pipeline_options import Options
from headrace.reading import Data, Rows
from headrace.serve.access import SCHEME
from headrace.serve.documentation import distinct
from headrace.serve.openapi import openapi
from headrace.testing.kit import Case, PipelineKit, Step

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "headrace"
REFERENCE = ROOT / "docs" / "reference"

HELP_WIDTH = 96
_METRIC = re.compile(r"headrace_[a-z_]+")
NOTE = "*Made by `make docs` from the code.*"


def pages() -> dict[str, str]:
    """Return every page's text by its name in `docs/reference`."""
    made = {
        "cli.md": command_line(),
        "http.md": http(),
        "python.md": python(),
        "options.md": options(),
        "metrics.md": metrics(),
        "failpoints.md": failpoints(),
    }
    return {name: text.rstrip() + "\n" for name, text in made.items()}


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def command_line() -> str:
    """Return the page of the verbs: what `--help` says."""
    parts = [
        "# Command line",
        NOTE,
        "Exit status: 0 done, 1 the user's fault, 2 the system's. `--json` prints for scripts.",
        "`HEADRACE_DATA` names the data directory where `--data` does not.",
        "`HEADRACE_TRACEBACK=1` shows the traceback of an unforeseen error.",
    ]
    for context in commands():
        words = context.command_path.split()
        parts.append(f"{'#' * len(words)} {' '.join(words)}")
        parts.append(f"```text\n{context.get_help()}\n```")
    return "\n\n".join(parts)


def commands(parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield every command and group as a context of its own, in the order of the help."""
    # With the program's own settings: a command keeps the names of --help that it saw first.
    above = parent or click.Context(
        cli, info_name="headrace", terminal_width=HELP_WIDTH, **cli.context_settings
    )
    group = above.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(above):
        command = group.get_command(above, name)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=above, terminal_width=HELP_WIDTH)
        yield context
        if isinstance(command, click.Group):
            yield from commands(context)


def http() -> str:
    """Return the page of the paths, of a pipeline whose names stand in braces."""
    described = openapi(_every_path())
    parts = [
        "# HTTP",
        NOTE,
        described["info"]["description"],
        "Each pipeline describes itself, names and columns, at `/openapi.json` and `/docs`.",
        "A scope is what a token has to have where a pipeline asks for tokens.",
        'Errors, on every path: `{"error": {"code": "…", "message": "…", "hint": "…"}}`.',
    ]
    for path, operations in described["paths"].items():
        for methods, operation in distinct(operations):
            parts += _operation(path, methods, operation)
    parts.append("## Limits")
    parts.append(_table(("limit", "value", ""), _documented_fields(Limits)))
    return "\n\n".join(parts)


def _operation(path: str, methods: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"## {methods} `{path}`"]
    scopes = [f"`{scope}`" for way in operation["security"] for scope in way[SCHEME]]
    asked = f"Scope: {scopes[0]}." if scopes else "Asks for no token."
    parts.append(f"{operation['summary']}. {operation.get('description', '')}".strip())
    parts.append(asked)
    rows = [
        (f"`{p['name']}`", p["in"], p["schema"].get("type", ""), p.get("description", ""))
        for p in operation.get("parameters", [])
    ]
    if rows:
        parts.append(_table(("parameter", "in", "type", ""), rows))
    answers = [
        (status, answer["description"], ", ".join(f"`{t}`" for t in answer["content"]))
        for status, answer in operation["responses"].items()
    ]
    parts.append(_table(("status", "", "content"), answers))
    return parts


def _every_path() -> plans.Plan:
    """Return a plan with one of each thing that has a path."""
    columns = (plans.Column("column", "VARCHAR"),)
    return plans.Plan(
        "pipeline",
        topics=(plans.Topic("{topic}", 1),),
        routes=(plans.Route("/your/route/{parameter}", "{topic}", {}, "reply"),),
        tables=(plans.Table("{table}", (), columns),),
        views=(plans.View("{view}", "{table}", "", columns, ("column",), (), (), ""),),
        queries=(
            plans.Query("/your/query", "", (plans.QueryParameter("parameter", "string"),), ()),
        ),
        options=Options(tokens=True),
    )


def python() -> str:
    """Return the page of what Python imports: pipeline files, notebooks, and tests."""
    parts = ["# Python", NOTE, "What a pipeline file and a notebook import from `headrace`:"]
    for name in headrace.__all__:
        parts += _documented(f"headrace.{name}", getattr(headrace, name))
    parts.append("What `headrace.open` gives to read tables with:")
    for kind in (Data, Rows):
        parts += _documented(kind.__name__, kind)
    parts.append("What a test imports from `headrace.testing.kit`:")
    for thing in (PipelineKit, Case, Step):
        parts += _documented(f"headrace.testing.kit.{thing.__name__}", thing)
    return "\n\n".join(parts)


def _documented(name: str, thing: object) -> list[str]:
    if thing is Any:
        return [f"## {name}", "Annotation of a field that takes any JSON value."]
    parts = [f"## {name}"]
    if inspect.isfunction(thing):
        parts.append(_signature(name.rpartition(".")[2], thing))
    parts.append(_prose(thing))
    if inspect.isclass(thing):
        methods: list[tuple[str, Callable[..., Any]]] = [
            (n, f) for n, f in vars(thing).items() if inspect.isfunction(f) and n[0] != "_"
        ]
        if inspect.isfunction(vars(thing).get("__init__")) and issubclass(thing, object):
            parts.append(_signature(thing.__name__, vars(thing)["__init__"]))
        for method, function in methods:
            parts += [f"### {thing.__name__}.{method}", _signature(method, function)]
            parts.append(_prose(function))
    return parts


def _signature(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    return f"```text\n{name}{signature.replace(parameters=kept)}\n```"


def _prose(thing: object) -> str:
    """Return a docstring as Markdown; `::` before an indented block is reST's own sign of code."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"::\n\n((?:(?:    .*)?\n?)+)", _fenced, text).strip()


def _fenced(match: re.Match[str]) -> str:
    code = inspect.cleandoc(match[1])
    return f"\n\n```text\n{code}\n```\n\n"


def options() -> str:
    """Return the page of a pipeline's options and of each kind of source."""
    given = (
        'Given as `Pipeline("name", epoch_records_max=1000, every="1 second")`: what is a number '
        "of seconds here is given as a length of time, without the `_s` of its name."
    )
    parts = ["# Options", NOTE, "## Pipeline", given]
    parts.append(_options(Options))
    for kind in SOURCES:
        source = source_class(kind)
        module = inspect.getmodule(source)
        about = inspect.getdoc(module) or ""
        parts += [f"## Source `{kind}`", about.partition("\n\n")[2]]
        parts.append(_options(source.Options))
    return "\n\n".join(parts)


def _options(declaring: type) -> str:
    rows = []
    for o in declared(declaring):
        bounds = [f"≥ {o.at_least:g}"] if o.at_least is not None else []
        bounds += [f"≤ {o.at_most:g}"] if o.at_most is not None else []
        default = "required" if o.required else f"`{o.default!r}`"
        kind = f"{o.type} {', '.join(bounds)}".strip()
        about = f"{o.doc} Only in the pipeline file." if o.owner else o.doc
        rows.append((f"`{o.name}`", kind, default, o.unit, about, f"`{o.example!r}`"))
    return _table(("option", "type", "default", "unit", "", "example"), rows)


def metrics() -> str:
    """Return the page of the metrics, wherever in the code they are named with their meaning."""
    found = dict(sorted(named_metrics()))
    rows = [(f"`{name}`", meaning) for name, meaning in found.items()]
    intro = "`GET /metrics` has those of every role, in the Prometheus text format."
    return "\n\n".join(["# Metrics", NOTE, intro, _table(("metric", ""), rows)])


def named_metrics() -> Iterator[tuple[str, str]]:
    """Yield name and meaning of every metric: `"headrace_…": "meaning"`, or two arguments."""
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs: list[tuple[ast.expr | None, ast.expr]] = []
            if isinstance(node, ast.Dict):
                pairs = list(zip(node.keys, node.values, strict=True))
            elif isinstance(node, ast.Call) and len(node.args) > 1:
                pairs = [(node.args[0], node.args[1])]
            for key, value in pairs:
                # Prometheus's text form adds this to the name of whatever only grows.
                counts = isinstance(node, ast.Call) and "Counter" in ast.unparse(node.func)
                told = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
                name, meaning = _text(key), _text(told)
                if name and meaning and " " in meaning and _METRIC.fullmatch(name):
                    yield f"{name}_total" if counts else name, meaning.rstrip(".")


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def failpoints() -> str:
    """Return the page of the failpoints."""
    rows = [(f"`{name}`", what) for name, what in FAILPOINTS.items()]
    intro = (
        "Places where a test can kill a process: `HEADRACE_FAILPOINT=commit.3:2=kill` acts the "
        "second time that the place is reached. Actions: `kill`, `stop`, `exit`, `error` (EIO), "
        "`full` (ENOSPC). With `HEADRACE_FAILPOINT_ONCE=PATH` only the first process that can make "
        "that file acts."
    )
    return "\n\n".join(["# Failpoints", NOTE, intro, _table(("failpoint", ""), rows)])


def _documented_fields(declaring: type) -> list[tuple[str, str, str]]:
    """Return name, default and docstring of a dataclass's fields."""
    source = ast.parse(inspect.getsource(declaring)).body[0]
    assert isinstance(source, ast.ClassDef)
    told = {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in zip(source.body, source.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    return [
        (f"`{f.name}`", f"{f.default:,}", " ".join(told.get(f.name, "").split()))
        for f in dataclasses.fields(declaring)
    ]


def _table(columns: tuple[str, ...], rows: list[Any]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    main()
