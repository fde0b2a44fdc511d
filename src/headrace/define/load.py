"""Load a pipeline file: import it under a private name and find its one `Pipeline`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from headrace.define.pipeline import Pipeline
from headrace.define.problem import Problem
from headrace.model.errors import HeadraceError

_MODULE = "_headrace_pipeline_"
"""With a hash of the path: never the name of a module that a user's file could import."""


def load(path: Path | str) -> Pipeline | list[Problem]:
    """Return the pipeline that a file declares, or what kept it from doing so.

    The file runs as Python, with its own folder first on the module path as for a script. It must
    hold one `Pipeline` at its top level, under any name.
    """
    file = Path(path)
    try:
        resolved = file.resolve(strict=True)
        if resolved.is_dir():
            raise IsADirectoryError(21, "Is a directory")
    except OSError as error:
        return [
            Problem(
                str(file),
                1,
                f"The pipeline file cannot be read: {error.strerror}",
                hint="Name the Python file that declares the pipeline.",
                code="no_file",
            )
        ]
    name = _MODULE + hashlib.blake2b(os.fsencode(resolved), digest_size=8).hexdigest()
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        return [Problem(str(file), 1, "This is no Python file", code="no_file")]
    module = importlib.util.module_from_spec(spec)
    with _as_script(module, resolved.parent):
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            line, where = error.lineno or 1, error.filename or str(resolved)
            return [Problem(where, line, f"Python does not parse: {error.msg}", code="syntax")]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises
            return [_raised(error, resolved)]
    found = {id(v): v for v in vars(module).values() if isinstance(v, Pipeline)}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        message = "The file declares no pipeline"
        hint = 'Write pipeline = Pipeline("name") at the top level.'
        return [Problem(str(resolved), 1, message, hint=hint, code="no_pipeline")]
    second = list(found.values())[1].place
    return [
        Problem(
            second.file,
            second.line,
            f"The file declares {len(found)} pipelines",
            hint="Keep one a file.",
            code="several_pipelines",
        )
    ]


@contextmanager
def _as_script(module: ModuleType, folder: Path) -> Iterator[None]:
    """Let a module's imports and annotations resolve while it runs, and leave no trace after.

    The module itself stays known by its private name: its record classes resolve their annotations
    there when they are checked.
    """
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the file may have changed it
            sys.path.remove(str(folder))


def _raised(error: BaseException, file: Path) -> Problem:
    """Return the problem of an exception, at the last line of the file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(file)), None) or 1
    if isinstance(error, HeadraceError):
        return Problem(str(file), line, error.message, error.hint, error.code)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Problem(str(file), line, f"The file raised {text}", code="raised")
