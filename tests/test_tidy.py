"""The house rules, as a test.

A rule that hurts is changed here, in the open, with its reason beside it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.app.registry import SOURCES, source_class
from headrace.model.options import declared
from headrace.model.pipeline_options import Options

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "headrace"

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
PARAMETERS_MAX = 10
# A contract is read in one sitting by whoever implements it; the other files of model/ hold nouns
# and their layouts, which are longer but no harder.
CONTRACTS = ("log.py", "runner.py", "source.py", "tables.py")
CONTRACT_LINES_MAX = 150
# plan.py is the whole compiled pipeline in one place.
MODEL_LINES_MAX = 350

NO_DRAWER = {"utils", "util", "common", "helpers", "misc"}
"""Names that say nothing about what is inside."""

CLOCK = SRC / "model" / "clock.py"
CHANCE_AND_TIME = {"random", "secrets", "time", "uuid"}
"""Modules that read the clock or make chance."""
HARMLESS = {"UUID", "struct_time", "gmtime", "strftime"}
"""Names of them that only lay out a value that they are given."""
READS_NOW = {"now", "utcnow", "today"}


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git knows or would add, so that what is made is not judged."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [p for p in (ROOT / name for name in listed.split("\0") if name) if p.is_file()]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def place(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None else ""
    return f"{path.relative_to(ROOT)}{line}"


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


PYTHON = tracked("*.py")
PRODUCT = [p for p in PYTHON if p.is_relative_to(SRC)]


def test_the_rules_see_the_code():
    assert CLOCK in PRODUCT
    assert Path(__file__).resolve() in PYTHON


def test_functions_are_short():
    long = [
        f"{place(path, f)} {f.name}: {f.end_lineno - f.lineno + 1} lines"
        for path in PYTHON
        for f in functions(path)
        if f.end_lineno - f.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_files_are_short():
    long = [f"{place(p)}: {lines(p)} lines" for p in PYTHON if lines(p) > FILE_LINES_MAX]
    assert long == []


def test_contract_files_are_short():
    model = SRC / "model"
    long = [f"{c}: {lines(model / c)}" for c in CONTRACTS if lines(model / c) > CONTRACT_LINES_MAX]
    long += [f"{p.name}: {lines(p)}" for p in model.glob("*.py") if lines(p) > MODEL_LINES_MAX]
    assert long == []


def test_parameters_are_few():
    many = [
        f"{place(path, f)} {f.name}: {n} parameters"
        for path in PRODUCT
        for f in functions(path)
        if (n := len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs)) > PARAMETERS_MAX
    ]
    assert many == []


def test_nothing_is_a_drawer():
    drawers = [
        place(p)
        for p in tracked()
        if NO_DRAWER & {p.stem, *(part.name for part in p.relative_to(ROOT).parents)}
    ]
    assert drawers == []


def test_nothing_is_left_to_do():
    mark = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    left = [
        f"{place(path)}:{number}"
        for path in tracked("*.py", "*.md", "Makefile", ".ci/*", "*.toml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if mark.search(line)
    ]
    assert left == []


def test_init_files_hold_no_logic():
    allowed = (ast.Import, ast.ImportFrom)
    logic = [
        place(path, node)
        for path in PRODUCT
        if path.name == "__init__.py"
        for node in tree(path).body
        if not isinstance(node, allowed) and not _is_docstring(node) and not _is_all(node)
    ]
    assert logic == []


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]


def test_time_and_chance_come_from_the_clock():
    found = [
        f"{place(path, node)} {what}"
        for path in PRODUCT
        if path != CLOCK
        for node in ast.walk(tree(path))
        if (what := _reads_time_or_chance(node))
    ]
    assert found == []


def _reads_time_or_chance(node: ast.AST) -> str | None:
    match node:
        case ast.Import(names=names):
            # `import uuid` alone is harmless: what it is used for is seen at the call.
            return next((n.name for n in names if n.name in CHANCE_AND_TIME - {"uuid"}), None)
        case ast.ImportFrom(module=module, names=names) if module in CHANCE_AND_TIME:
            return next((f"{module}.{n.name}" for n in names if n.name not in HARMLESS), None)
        case ast.Attribute(value=ast.Name(id="uuid"), attr=attr) if attr not in HARMLESS:
            return f"uuid.{attr}"
        case ast.Attribute(value=ast.Name(id="os"), attr="urandom"):
            return "os.urandom"
        case ast.Call(func=ast.Attribute(value=owner, attr=attr)) if attr in READS_NOW:
            named = ast.unparse(owner).split(".")[-1]
            return f"{named}.{attr}" if named in {"datetime", "date"} else None
    return None


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from time import sleep",
        "import random",
        "import uuid\nuuid.uuid4()",
        "from uuid import uuid4",
        "import os\nos.urandom(8)",
        "datetime.now()",
        "datetime.datetime.now(tz=UTC)",
        "date.today()",
    ],
)
def test_reading_time_or_chance_is_noticed(code):
    assert any(_reads_time_or_chance(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["import uuid\nuuid.UUID(bytes=b)", "clock.now()", "from uuid import UUID"]
)
def test_laying_out_a_value_is_allowed(code):
    assert not any(_reads_time_or_chance(node) for node in ast.walk(ast.parse(code)))


def test_a_skip_says_why():
    silent = [
        place(path, node)
        for path in PYTHON
        if path.is_relative_to(ROOT / "tests")
        for node in ast.walk(tree(path))
        if _skips_silently(node)
    ]
    assert silent == []


def _skips_silently(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name, words = ast.unparse(node.func), {k.arg for k in node.keywords}
        if name == "pytest.skip":
            return not node.args and "reason" not in words
        return name in {"pytest.mark.skip", "pytest.mark.skipif"} and "reason" not in words
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return any(ast.unparse(d) == "pytest.mark.skip" for d in node.decorator_list)
    return False


def test_the_check_commands_of_the_readme_are_what_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in ("make lint", "make test"):
        assert command in readme
        assert command in ci


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate():
    return load_generator()


def test_the_reference_pages_are_those_of_the_code(generate):
    made = generate.pages()
    there = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "docs/reference").iterdir()}
    stale = [name for name in made | there if made.get(name) != there.get(name)]
    assert stale == [], "run `make docs`"


@pytest.fixture(scope="module")
def documented():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def test_every_verb_and_its_options_are_documented(generate, documented):
    missing = []
    for context in generate.commands():
        options = [o for p in context.command.params for o in p.opts if o.startswith("--")]
        if context.command_path not in documented:
            missing.append(context.command_path)
        missing += [f"{context.command_path} {o}" for o in options if o not in documented]
    assert missing == []


def test_every_verb_is_in_the_guide_by_hand(generate):
    by_hand = "".join(
        (ROOT / p).read_text(encoding="utf-8") for p in ("README.md", "docs/guide.md")
    )
    verbs = {context.command_path for context in generate.commands()}
    verbs = {verb for verb in verbs if len(verb.split()) == 2}
    assert {verb for verb in verbs if verb not in by_hand} == {"headrace demo"}  # `make demo`


PATH = re.compile(r"/(v1/[a-z{}/-]+|healthz|ready|metrics|openapi\.json|docs)")


def test_every_http_path_is_documented(documented):
    paths = {
        text
        for folder in ("serve", "collect")
        for path in (SRC / folder).glob("*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(text := node.value, str)
        and PATH.fullmatch(text)
    }
    assert len(paths) > 8
    assert {p for p in paths if p.rstrip("/") not in documented} == set()


def test_every_metric_is_documented(generate, documented):
    named = {
        node.value
        for path in PRODUCT
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"headrace_[a-z_]+", node.value)
    }
    meant = {name.removesuffix("_total") for name, _ in generate.named_metrics()}
    unexplained = {n for n in named if n.removesuffix("_total") not in meant}
    assert {n for n in unexplained if n not in NO_METRIC} == set()
    assert {n for n in named - unexplained if n not in documented} == set()


NO_METRIC = {"headrace_history"}
"""Names that begin like a metric's and are none."""


def test_every_option_is_documented(documented):
    options = [o.name for o in declared(Options)]
    options += [o.name for kind in SOURCES for o in declared(source_class(kind).Options)]
    assert {o for o in options if f"`{o}`" not in documented} == set()


def test_layers_are_drawn_as_they_are_enforced():
    drawn = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    enforced = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folders = {p.name for p in SRC.iterdir() if (p / "__init__.py").is_file()}
    assert {f for f in folders if f"headrace.{f}" not in enforced} == set()
    assert {f for f in folders if f not in drawn} == set()
