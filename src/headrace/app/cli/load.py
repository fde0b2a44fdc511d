"""`headrace load`: an event generator over HTTP, on this machine unless told otherwise."""

from __future__ import annotations

import bisect
import http.client
import ipaddress
import itertools
import threading
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import click

from headrace.app.cli.options import json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.model.clock import Clock, SystemClock
from headrace.model.errors import Invalid, Unavailable

CONNECTIONS_MAX = 512
COUNT_MAX = 100_000_000
TIMEOUT_S = 30.0
ACKNOWLEDGED = (200, 202)


@dataclass(frozen=True)
class Target:
    """Where events go, and which."""

    host: str
    port: int
    paths: tuple[str, ...]
    weights: tuple[float, ...]
    """Running sums of the paths' shares, the last one 1."""
    hosts: tuple[str, ...]
    """Host headers, taken in turn; none sends the target's own."""
    token: str = ""
    """Shown with every request, if there is one."""


@dataclass
class Tally:
    """What one connection saw."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)


@click.command()
@click.argument("url", default="http://127.0.0.1:8080")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=1_000, show_default=True,
              help="How many events in all.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=None,
              help="Events a second in all; as fast as they are answered without.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, CONNECTIONS_MAX), default=8,
              show_default=True, help="How many at once.")  # fmt: skip
@click.option("--mix", default="/", show_default=True,
              help="Paths and their shares: /purchase_a_sword=3,/join_guild/red=1.")  # fmt: skip
@click.option("--hosts", default="", help="Host headers, in turn: user1.com,user2.com.")
@click.option("--token", default="", envvar="HEADRACE_TOKEN", show_envvar=True,
              help="What to send as a bearer token.")  # fmt: skip
@click.option("--allow-remote", is_flag=True, help="Send to another machine than this.")
@json_option
def load(
    url: str,
    count: int,
    rate: float | None,
    connections: int,
    mix: str,
    hosts: str,
    token: str,
    *,
    allow_remote: bool,
    as_json: bool,
) -> int:
    """Send GET requests to URL and print how many were sent and acknowledged, and how quickly.

    Status 2 if any was not acknowledged.
    """
    target = _target(url, mix, hosts, token, allow_remote=allow_remote)
    clock = SystemClock()
    started_s = clock.monotonic_s()
    tallies = generate(target, clock, count=count, rate=rate, connections=min(connections, count))
    found = _summary(tallies, clock.monotonic_s() - started_s)
    lost = sum(t.sent for t in tallies) - int(str(found["acknowledged"]))
    if as_json:
        print_json(found)
    else:
        print_rows(("", ""), [(k.replace("_", " "), v) for k, v in found.items()])
        if lost:
            console().print(f"[bold red]{lost} events were not acknowledged.[/]")
    return 2 if lost else 0


def generate(
    target: Target, clock: Clock, *, count: int, rate: float | None, connections: int
) -> list[Tally]:
    """Send `count` events over so many connections; return what each saw."""
    numbers = itertools.count()
    tallies = [Tally() for _ in range(connections)]
    # next() on a count is one step of the interpreter, so threads share it without a lock.
    threads = [
        threading.Thread(target=_send, args=(target, clock, numbers, count, rate, tally))
        for tally in tallies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tallies


def _send(
    target: Target,
    clock: Clock,
    numbers: itertools.count[int],
    count: int,
    rate: float | None,
    tally: Tally,
) -> None:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=TIMEOUT_S)
    started_s = clock.monotonic_s()
    while (number := next(numbers)) < count:
        if rate:
            clock.sleep(max(0.0, started_s + number / rate - clock.monotonic_s()))
        path = target.paths[bisect.bisect(target.weights, clock.random())]
        headers = {"User-Agent": "headrace-load"}
        if target.token:
            headers["Authorization"] = f"Bearer {target.token}"
        if target.hosts:
            headers["Host"] = target.hosts[number % len(target.hosts)]
        before_s = clock.monotonic_s()
        tally.sent += 1
        try:
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as response:
                response.read()
                tally.statuses[str(response.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            # Not sent again: whether the first one arrived is not known.
            tally.statuses[type(error).__name__] += 1
            connection.close()
            continue
        tally.latencies_s.append(clock.monotonic_s() - before_s)
    connection.close()


def _target(url: str, mix: str, hosts: str, token: str, *, allow_remote: bool) -> Target:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise Invalid(f"{url} is no http address", hint="for example http://127.0.0.1:8080")
    if not allow_remote and not _is_loopback(parts.hostname):
        raise Invalid(
            f"{parts.hostname} is not this machine",
            hint="say --allow-remote if that machine is meant to bear the load",
            code="remote_target",
        )
    shares = _shares(mix)
    total = sum(shares.values())
    sums = list(itertools.accumulate(share / total for share in shares.values()))
    return Target(
        host=parts.hostname,
        port=parts.port or 80,
        paths=tuple(shares),
        weights=(*sums[:-1], 1.0),
        hosts=tuple(h for h in hosts.split(",") if h),
        token=token,
    )


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


def _summary(tallies: list[Tally], seconds: float) -> dict[str, object]:
    statuses: Counter[str] = sum((t.statuses for t in tallies), Counter())
    latencies_s = sorted(s for t in tallies for s in t.latencies_s)
    acknowledged = sum(statuses[str(code)] for code in ACKNOWLEDGED)
    if not latencies_s:
        raise Unavailable(
            "Nothing answered: " + ", ".join(f"{n} times {what}" for what, n in statuses.items()),
            hint="is a run alive there? `headrace run` prints its address",
        )
    return {
        "sent": sum(t.sent for t in tallies),
        "acknowledged": acknowledged,
        "statuses": dict(sorted(statuses.items())),
        "seconds": round(seconds, 3),
        "acknowledged_per_s": round(acknowledged / seconds, 1),
        "latency_ms_p50": _at(latencies_s, 0.5),
        "latency_ms_p99": _at(latencies_s, 0.99),
        "latency_ms_max": _at(latencies_s, 1.0),
    }


def _at(ordered_s: list[float], part: float) -> float:
    """Return the value below which a part of the sorted values lies, in milliseconds."""
    return round(1_000 * ordered_s[min(len(ordered_s) - 1, int(part * len(ordered_s)))], 3)
