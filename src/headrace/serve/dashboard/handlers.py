"""The dashboard's paths: what answers each, and what each asks of a token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from headrace.control.tokens import READ
from headrace.model.clock import Clock
from headrace.model.layout import Layout
from headrace.model.log import LogReader
from headrace.model.plan import Plan
from headrace.serve.dashboard.changes import Changes
from headrace.serve.dashboard.epochs import Epochs
from headrace.serve.dashboard.health import HealthPage
from headrace.serve.dashboard.letters import LetterPages
from headrace.serve.dashboard.overview import Overview
from headrace.serve.dashboard.page import ASSETS, ROOT, Shell, asset, root_of
from headrace.serve.dashboard.relations import RelationPages
from headrace.serve.dashboard.session import SIGN_IN, SIGN_OUT, SessionPages
from headrace.serve.dashboard.sources import SourcePages
from headrace.serve.dashboard.sql import SqlPage
from headrace.serve.dashboard.topics import TopicPages, Topics
from headrace.serve.letters import LetterActs
from headrace.serve.reading import Readings
from headrace.serve.sources import SourceEndpoints

Handler = Callable[[Request], Awaitable[Response]]

OPEN = ""
"""Not a scope: the path is answered without a token."""

SCOPES = {
    ("GET", f"{ROOT}topics"): READ,
    ("GET", f"{ROOT}topics/{{topic}}"): READ,
    ("GET", f"{ROOT}tables"): READ,
    ("GET", f"{ROOT}tables/{{table}}"): READ,
    ("GET", f"{ROOT}views/{{view}}"): READ,
    ("GET", f"{ROOT}dead-letters"): READ,
    ("GET", f"{ROOT}dead-letters/{{letter}}"): READ,
    ("GET", f"{ROOT}sources"): READ,
    ("GET", f"{ROOT}health"): READ,
    ("GET", f"{ROOT}sql"): READ,
    ("GET", f"{ROOT}changes"): READ,
    ("GET", f"{ASSETS}{{asset}}"): OPEN,
    ("GET", SIGN_IN): OPEN,
    ("POST", SIGN_IN): OPEN,
    ("POST", SIGN_OUT): OPEN,
}
"""What the pages do beside showing, they do by the paths of `/v1`, each with its own scope."""


def dashboard_paths(plan: Plan) -> tuple[str, ...]:
    """Return where the dashboard is: at `/_/`, and at `/` unless the pipeline declares that."""
    return tuple(dict.fromkeys((root_of(plan), ROOT)))


class Parts(NamedTuple):
    """What the pages are made of."""

    shell: Shell
    readings: Readings
    acts: LetterActs
    reader: LogReader
    """For the pages alone."""
    layout: Layout
    clock: Clock
    waits_for: Sequence[str]
    """The roles that are to run beside; see `health.readiness`."""
    session: SessionPages | None
    """If the pipeline asks for tokens."""
    sources: SourceEndpoints | None
    """If a pull role may run beside."""
    kinds: Mapping[str, type]
    """The options of each kind of source that may be added."""


def dashboard_handlers(parts: Parts, changes: Changes) -> dict[str, dict[str, Handler]]:
    """Return who answers each path, by method."""
    shell, readings, clock = parts.shell, parts.readings, parts.clock
    epochs = Epochs(readings.catalog.snapshots)
    held = Topics(readings.plan, parts.reader, readings.ledger, epochs)
    followed = parts.sources.read if parts.sources else list
    overview = Overview(shell, readings, held, epochs, clock, followed)
    topics = TopicPages(shell, held, clock)
    relations = RelationPages(shell, readings, clock)
    letters = LetterPages(shell, readings, parts.acts)
    health = HealthPage(shell, readings, epochs, parts.layout, clock, parts.waits_for)
    shown: dict[str, Handler] = {
        **dict.fromkeys(dashboard_paths(readings.plan), overview.page),
        f"{ROOT}topics": topics.listed,
        f"{ROOT}topics/{{topic}}": topics.one,
        f"{ROOT}tables": relations.listed,
        f"{ROOT}tables/{{table}}": relations.table,
        f"{ROOT}views/{{view}}": relations.view,
        f"{ROOT}dead-letters": letters.listed,
        f"{ROOT}dead-letters/{{letter}}": letters.one,
        f"{ROOT}health": health.page,
        f"{ROOT}sql": SqlPage(shell, readings).page,
        f"{ROOT}changes": changes.stream,
        f"{ASSETS}{{asset}}": asset,
    }
    if parts.sources is not None:
        sources = SourcePages(shell, parts.sources, readings.plan, parts.kinds)
        shown[f"{ROOT}sources"] = sources.page
    handlers: dict[str, dict[str, Handler]] = {path: {"GET": h} for path, h in shown.items()}
    if parts.session is not None:
        handlers[SIGN_IN] = {"GET": parts.session.form, "POST": parts.session.sign_in}
        handlers[SIGN_OUT] = {"POST": parts.session.sign_out}
    return handlers
