"""`headrace load`: events over HTTP, to this machine unless told otherwise."""

from __future__ import annotations

import ipaddress
import signal
import ssl
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.app.cli.options import json_option
from headrace.app.cli.printing import console, print_json, print_rows, visible
from headrace.app.load.sender import Load, Tally, Target
from headrace.app.load.traffic import Traffic, running_shares, zipf
from headrace.define.duration import seconds
from headrace.model.clock import Clock, SystemClock
from headrace.model.errors import Invalid, Unavailable

CONNECTIONS_MAX = 512
COUNT_MAX = 100_000_000
COUNT_DEFAULT = 1_000
USERS_MAX = 1_000_000
SHOW_EVERY_S = 0.25
INTERRUPTED = 130

PROFILES: dict[str, dict[str, Any]] = {
    "steady": {},
    "bursts": {"pace": "bursts", "rate": 100.0},
    "ab": {"pace": "ab", "connections": 1, "hosts": "user1.example.com,user2.example.com"},
    "zipf": {"users": 1_000, "hosts": "{user}.example.com"},
    "messy": {"late": 0.05, "duplicates": 0.05, "rate": 100.0},
}
"""Profile → what it says where the command line does not."""


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds(value)


def _profile(context: click.Context, _: click.Parameter, value: str) -> str:
    context.default_map = {**(context.default_map or {}), **PROFILES[value]}
    return value


_PART = click.FloatRange(0, 1, max_open=True)


@click.command()
@click.argument("url", default="http://127.0.0.1:8080")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="steady", show_default=True,
              callback=_profile, is_eager=True,
              help="What to begin with; other options change it.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=None,
              help=f"How many requests in all; {COUNT_DEFAULT} without --duration.")  # fmt: skip
@click.option("--duration", "duration_s", callback=_seconds,
              help="How long to send: 30s, 10 minutes.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=None,
              help="Requests a second in all; as fast as they are answered without.")  # fmt: skip
@click.option("--pace", type=click.Choice(["steady", "bursts", "ab"]), default="steady",
              show_default=True,
              help="bursts: 10 s of it in 1 s. ab: ten alike, over a connection each.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, CONNECTIONS_MAX), default=8,
              show_default=True, help="How many at once.")  # fmt: skip
@click.option("--mix", default="/", show_default=True,
              help="Paths and their shares: /purchase_a_sword=3,/join_guild/red=1.")  # fmt: skip
@click.option("--hosts", default="", help="Host headers, in turn: user1.com,user2.com.")
@click.option("--users", type=click.IntRange(1, USERS_MAX), default=1, show_default=True,
              help="How many there are, as {user} in paths, hosts and body.")  # fmt: skip
@click.option("--skew", type=click.FloatRange(0, 10), default=1.1, show_default=True,
              help="Zipf's exponent: 0 has all users alike.")  # fmt: skip
@click.option("--body", help='JSON to POST, instead of GET: {"who": "{user}", "at": "{time}"}.')
@click.option("--late", type=_PART, default=0.0, show_default=True,
              help="Part of the events whose {time}, in the body, is past.")  # fmt: skip
@click.option("--late-by", "late_s", default="60s", show_default=True, callback=_seconds,
              help="How long past at most.")  # fmt: skip
@click.option("--duplicates", type=_PART, default=0.0, show_default=True,
              help="Part of the requests that repeat an earlier one, with its id.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Decides what is drawn: the same seed sends the same.")  # fmt: skip
@click.option("--token", default="", envvar="HEADRACE_TOKEN", show_envvar=True,
              help="What to send as a bearer token.")  # fmt: skip
@click.option("--ca", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Certificates to trust, PEM, for an https address.")  # fmt: skip
@click.option("--allow-remote", is_flag=True, help="Send to another machine than this.")
@json_option
def load(
    url: str,
    *,
    profile: str,
    count: int | None,
    duration_s: float | None,
    connections: int,
    token: str,
    ca: Path | None,
    allow_remote: bool,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401 - what the traffic is made of
) -> int:
    """Send requests to URL and print how many were acknowledged, and how quickly.

    Profiles: steady; bursts; ab, the loop of `ab -n 10` with one Host after another; zipf, a
    thousand users of whom few do most; messy, with late events and duplicates.

    Status 2 if any was not acknowledged.
    """
    target = _target(url, token, ca, allow_remote=allow_remote)
    traffic = _traffic(**chosen)
    clock = SystemClock()
    if count is None and duration_s is None:
        count = COUNT_DEFAULT
    running = Load(
        target,
        traffic,
        clock,
        count=count,
        duration_s=duration_s,
        connections=min(connections, count or connections),
        # Another run's events are others, also those of the same seed.
        name=clock.new_id().hex() if traffic.duplicates else "",
    )
    started_s = clock.monotonic_s()
    with _interrupts(running.stop):
        _watch(running, clock, is_shown=not as_json and sys.stdout.isatty())
    tally = running.join()
    found = {"profile": profile, "seed": traffic.seed}
    found |= _summary(tally, traffic, clock.monotonic_s() - started_s)
    lost = tally.sent - tally.acknowledged
    if as_json:
        print_json(found)
    else:
        print_rows(("", ""), [(k.replace("_", " "), v) for k, v in found.items()])
        if lost:
            console().print(f"[bold red]{lost} requests were not acknowledged.[/]")
    if running.stop.is_set():
        return INTERRUPTED
    return 2 if lost else 0


def _watch(running: Load, clock: Clock, *, is_shown: bool) -> None:
    """Wait until all is sent and answered, and show how it goes."""
    started_s = clock.monotonic_s()
    never = threading.Event()
    running.begin()
    if not is_shown:
        while not running.is_done:
            clock.wait(never, SHOW_EVERY_S / 5)
        return
    before, before_s = 0, started_s
    with Live(console=console(), auto_refresh=False, transient=True) as live:
        while not running.is_done:
            clock.wait(never, SHOW_EVERY_S)
            tally, now_s = running.tally(), clock.monotonic_s()
            rate = (tally.acknowledged - before) / max(now_s - before_s, 1e-3)
            before, before_s = tally.acknowledged, now_s
            live.update(shown(tally, now_s - started_s, rate), refresh=True)


@contextmanager
def _interrupts(stop: threading.Event) -> Generator[None]:
    """Set `stop` at the first Ctrl-C, whatever it meets; the second ends the program at once."""

    def first(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shown(tally: Tally, elapsed_s: float, rate: float) -> Table:
    """Return what the display has: counts, the rate of this moment, latencies, what went wrong."""
    table = Table.grid(padding=(0, 2))
    errors = {s: n for s, n in sorted(tally.statuses.items()) if not s.startswith("2")}
    table.add_row("elapsed", f"{elapsed_s:.0f} s", "now", f"{rate:,.0f}/s")
    table.add_row("sent", f"{tally.sent:,}", "acknowledged", f"{tally.acknowledged:,}")
    latencies = [f"p{100 * p:g} {_ms(tally.latency_s(p))} ms" for p in (0.5, 0.95, 0.99)]
    table.add_row("latency", *latencies)
    words = ", ".join(f"{visible(status)} {n:,}" for status, n in errors.items())
    table.add_row("errors", Text(words or "none", style="red" if errors else ""))
    return table


def _traffic(
    *,
    mix: str,
    hosts: str,
    users: int,
    skew: float,
    **chosen: Any,  # noqa: ANN401 - as above
) -> Traffic:
    shares = _shares(mix)
    return Traffic(
        paths=tuple(shares),
        weights=running_shares(list(shares.values())),
        hosts=tuple(h for h in hosts.split(",") if h),
        users=zipf(users, skew),
        **chosen,
    )


def _target(url: str, token: str, ca: Path | None, *, allow_remote: bool) -> Target:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Invalid(f"{url} is no http address", hint="for example http://127.0.0.1:8080")
    if not allow_remote and not _is_loopback(parts.hostname):
        raise Invalid(
            f"{parts.hostname} is not this machine",
            hint="say --allow-remote if that machine is meant to bear the load",
            code="remote_target",
        )
    try:
        tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
    except ssl.SSLError as error:
        raise Invalid(f"{ca} holds no certificate that can be read", code="not_pem") from error
    port = parts.port or (443 if tls else 80)
    return Target(parts.hostname, port, token, tls)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shares(mix: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in filter(None, mix.split(",")):
        path, _, share = item.partition("=")
        try:
            shares[path if path.startswith("/") else f"/{path}"] = float(share or 1)
        except ValueError:
            raise Invalid(f"{item} is no path and share", hint="for example /buy=3,/=1") from None
    if not shares or min(shares.values()) <= 0:
        raise Invalid("The mix names no path with a share above 0", hint="for example /buy=3,/=1")
    return shares


def _summary(tally: Tally, traffic: Traffic, elapsed_s: float) -> dict[str, object]:
    if tally.sent and not tally.steps:
        raise Unavailable(
            "Nothing answered: "
            + ", ".join(f"{n} times {what}" for what, n in tally.statuses.items()),
            hint="say --ca with the certificate to be trusted"
            if ssl.SSLCertVerificationError.__name__ in tally.statuses
            else "is a run alive there? `headrace run` prints its address",
        )
    found: dict[str, object] = {
        "sent": tally.sent,
        "acknowledged": tally.acknowledged,
        "statuses": dict(sorted(tally.statuses.items())),
    }
    if traffic.duplicates:
        # What the tables should have, whatever was sent how often.
        found["events"] = len(tally.events)
    if tally.late:
        found["late"] = tally.late
    return found | {
        "seconds": round(elapsed_s, 3),
        "acknowledged_per_s": round(tally.acknowledged / max(elapsed_s, 1e-6), 1),
        "latency_ms_p50": _ms(tally.latency_s(0.5)),
        "latency_ms_p95": _ms(tally.latency_s(0.95)),
        "latency_ms_p99": _ms(tally.latency_s(0.99)),
        "latency_ms_max": _ms(tally.latency_s_max),
    }


def _ms(latency_s: float) -> float:
    return round(1_000 * latency_s, 3)
