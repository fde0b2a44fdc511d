"""The demonstration: run the game pipeline, send it events, and show that the counts agree."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2

from headrace.app.load.sender import Load, Target
from headrace.app.load.traffic import Traffic
from headrace.app.pipeline_file import require_plan
from headrace.app.running import run_pipeline
from headrace.app.supervisor import Address
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Unavailable
from headrace.model.layout import Layout

Kind = tuple[str, str | None]
"""Event type and guild."""

PIPELINE = Path(__file__).parent / "templates" / "game.py"
EVENTS: dict[str, tuple[Kind, int]] = {
    "/": (("default", None), 100),
    "/purchase_a_sword": (("purchase_sword", None), 300),
    "/join_guild/red": (("join_guild", "red"), 120),
    "/join_guild/blue": (("join_guild", "blue"), 80),
}
"""Path → what its events become, and how many are sent."""
HOSTS = ("user1.example.com", "user2.example.com")
CONNECTIONS = 8
POLL_S = 0.1
COUNTED_S_MAX = 60.0
"""How long the counts may take to agree with what was sent."""

Show = Callable[[list[tuple[str, int, int]]], None]
"""Shows (path, acknowledged, counted)."""


class Demo:
    """Runs the game pipeline in a data directory that should be new."""

    def __init__(self, layout: Layout, clock: Clock, address: Address, show: Show) -> None:
        """Listen at `address`; `show` is called once, with what was sent and counted."""
        self._layout = layout
        self._clock = clock
        self._address = address
        self._show = show
        self._failure: HeadraceError | None = None
        self._stop = threading.Event()

    def run(self, say: Callable[[str], None], *, ends: bool) -> None:
        """Run until a signal or, with `ends`, until the counts agree.

        `Unavailable` if they do not.
        """
        plan = require_plan(PIPELINE)
        traffic = threading.Thread(target=self._traffic, args=(say,), kwargs={"ends": ends})
        try:
            run_pipeline(
                plan, self._layout, self._clock, self._address, say=say, ready=traffic.start
            )
        finally:
            self._stop.set()
            if traffic.ident is not None:
                traffic.join()
        if self._failure is not None:
            raise self._failure

    def _traffic(self, say: Callable[[str], None], *, ends: bool) -> None:
        url = f"http://{self._address.host}:{self._address.port}"
        try:
            say(f"the game runs at {url}; sending {sum(n for _, n in EVENTS.values())} events")
            acknowledged = {path: self._send(path, count) for path, (_, count) in EVENTS.items()}
            counts = self._counted(url, acknowledged)
            self._show([(path, n, counts[path]) for path, n in acknowledged.items()])
            if not ends:
                say(f"it goes on until Ctrl-C; try: curl {url}/purchase_a_sword")
        except HeadraceError as error:
            self._failure = error
            ends = True
        if ends:
            # The supervisor's own handler: it stops the roles in their order.
            signal.raise_signal(signal.SIGTERM)

    def _send(self, path: str, count: int) -> int:
        target = Target(self._address.host, self._address.port)
        traffic = Traffic(paths=(path,), hosts=HOSTS)
        load = Load(target, traffic, self._clock, count=count, connections=CONNECTIONS)
        load.begin()
        return load.join().acknowledged

    def _counted(self, url: str, acknowledged: dict[str, int]) -> dict[str, int]:
        """Return the counts once they equal what was acknowledged; `Unavailable` if they never do.

        The counts are those that anybody gets from the pipeline, over HTTP.
        """
        deadline_s = self._clock.monotonic_s() + COUNTED_S_MAX
        counts = _counts(url)
        while counts != acknowledged:
            if self._clock.monotonic_s() > deadline_s or self._clock.wait(self._stop, POLL_S):
                raise Unavailable(
                    f"Acknowledged {acknowledged}, but counted {counts}",
                    hint="look at `headrace status`",
                )
            counts = _counts(url)
        return counts


def _counts(url: str) -> dict[str, int]:
    """Return how many events of each path the pipeline has counted."""
    answer = httpx2.get(f"{url}/v1/views/events_by_type", timeout=COUNTED_S_MAX)
    if answer.status_code != httpx2.codes.OK:
        return {}
    counted = {(row["event_type"], row["guild"]): row["n"] for row in answer.json()["rows"]}
    return {path: counted[kind] for path, (kind, _) in EVENTS.items() if kind in counted}
