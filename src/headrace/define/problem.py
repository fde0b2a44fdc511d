"""What `check` finds: faults with the place that the user wrote, collected rather than raised."""

from __future__ import annotations

import difflib
import inspect
import linecache
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import msgspec

from headrace.model.errors import Invalid


class Place(msgspec.Struct, frozen=True):
    """A line of a file, counted from 1."""

    file: str
    line: int


class Problem(msgspec.Struct, frozen=True):
    """One fault of a pipeline file: where, what, what to do, and a stable word for programs."""

    file: str
    line: int
    message: str
    hint: str = ""
    code: str = "invalid"

    def __str__(self) -> str:
        """Return the fault as compilers print it, the hint on a line of its own."""
        text = f"{self.file}:{self.line}: {self.message} [{self.code}]"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class Faults:
    """Collects the problems of one check."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, place: Place, message: str, *, hint: str = "", code: str = "invalid") -> None:
        """Note a fault at a place; the same fault at the same place is noted once."""
        problem = Problem(place.file, place.line, message, hint, code)
        if problem not in self.problems:
            self.problems.append(problem)

    @contextmanager
    def collect(self, place: Place) -> Iterator[None]:
        """Note an `Invalid` raised in the block as a fault at `place`, and go on after it."""
        try:
            yield
        except Invalid as error:
            self.add(place, error.message, hint=error.hint, code=error.code)


def caller(frame: FrameType | None) -> Place:
    """Return the place from which the function of `frame` was called."""
    outer = frame.f_back if frame else None
    return Place(outer.f_code.co_filename, outer.f_lineno) if outer else Place("<unknown>", 1)


def here() -> Place:
    """Return the place that called the function that calls this one."""
    frame = inspect.currentframe()
    return caller(frame.f_back if frame else None)


def inside(place: Place, text: str, position: int = 0) -> Place:
    """Return the line of character `position` of `text`, a literal of the statement at `place`.

    Where the file does not hold the text as it is (it was built by code), that is `place` itself.
    """
    source = "".join(linecache.getlines(place.file)[place.line - 1 :])
    at = source.find(text)
    if at < 0:
        return place
    return Place(place.file, place.line + source.count("\n", 0, at + position))


def nearest(name: str, known: Iterable[str], sentence: str = "Did you mean {}?") -> str:
    """Return a hint that names the known name most like `name`, or else lists what is known."""
    names = sorted(set(known))
    folded = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    if close:
        return sentence.format(f"`{folded[close[0]]}`")
    return f"Known here: {', '.join(names[:20])}" if names else ""
