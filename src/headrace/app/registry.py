"""What kinds of sources there are: a word of the pipeline file → where its class is.

Classes are named by import strings and loaded when they are asked for, so a pipeline that does not
use a source does not need the libraries of that source. Adding one is a line here.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from headrace.model import plan as plans
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.options import read_options
from headrace.model.source import Source
from headrace.sources.http import Network

SOURCES: dict[str, str] = {
    "replay": "headrace.sources.replay:Replay",
    "gbif": "headrace.sources.gbif:Gbif",
    "obis": "headrace.sources.obis:Obis",
    "idigbio": "headrace.sources.idigbio:Idigbio",
    "http_stream": "headrace.sources.http_stream:HttpStream",
}
"""Kind → `module:class`. The class has `Options` and takes (options, clock, network)."""

AT_RUN_TIME = frozenset({"gbif", "http_stream", "idigbio", "obis"})
"""Kinds that may be added while a pipeline runs: they ask services and read no files."""


def source_class(kind: str) -> Any:  # noqa: ANN401 - a class that fits `Source`, loaded by name
    """Return the class of a kind of source; `Invalid` if there is none."""
    if kind not in SOURCES:
        near = difflib.get_close_matches(kind, SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(SOURCES)}"
        msg = f"There is no source of kind {kind}"
        raise Invalid(msg, hint=hint, code="unknown_source_kind")
    module, _, name = SOURCES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def options_at_run_time(kind: str) -> type:
    """Return the options of a kind that may be added while a pipeline runs; `Invalid` if none."""
    found = source_class(kind)
    if kind not in AT_RUN_TIME:
        raise Invalid(
            f"A source of kind {kind} reads files, which those who add sources may not",
            hint="Declare it in the pipeline file. "
            f"To be added while it runs there are {', '.join(sorted(AT_RUN_TIME))}.",
            code="source_of_files",
        )
    options: type = found.Options
    return options


def open_source(declared: plans.Source, clock: Clock, network: Network) -> Source:
    """Return a source as it is declared; `Invalid` if its kind or options cannot be used.

    `network` is what all sources of the process share, so that no service is asked by two at once.
    """
    kind = source_class(declared.kind)
    options = read_options(kind.Options, declared.options, f'source "{declared.name}"')
    source: Source = kind(options, clock, network)
    return source
