"""The whole of it on one machine: services, pipeline, old API, a user, and the plain script beside.

    make demo-biodiversity            until Ctrl-C
    make demo-biodiversity DEMO_EXIT=1   until the counts have settled

The services are stand-ins on the loopback interface. They serve the recordings in the folder that
HEADRACE_RECORDINGS names, by default ../shared/data beside the repository, and where there are none
records that nobody observed. With DEMO_EXIT=1 the status is 0 only if every count equals the plain
script's, and the last line is one JSON object: what /count and /listSources answered.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from headrace.app.cluster.ports import free_port
from headrace.model.clock import SystemClock
from headrace.testing.services import Services, services

HERE = Path(__file__).resolve().parent
HEADRACE = Path(sys.executable).parent / "headrace"
RECORDINGS = os.environ.get("HEADRACE_RECORDINGS") or HERE.parents[1].parent / "shared" / "data"
GENERATED = 2_000
"""Records of each service where there are no recordings."""
KINDS = ("gbif", "obis", "idigbio")
BY = ("kingdom", "species", "source")
REQUESTS_PER_S = 20
"""Of real services one asks less; this one is ours."""
POLL_S = 1.0
START_S_MAX, SETTLE_S_MAX, STOP_S_MAX = 60.0, 300.0, 30.0

CLOCK = SystemClock()
console = Console(highlight=False, soft_wrap=True)
Counts = dict[str, dict[str, int]]


class Failed(Exception):
    """The demonstration cannot go on."""


class OldUser:
    """Somebody who knows the old API, and nothing else."""

    def __init__(self, url: str, owner_token: str, pipeline: str) -> None:
        """Talk to `url`. Reads with a token of its own; adding sources is the owner's to do."""
        self._url, self._pipeline = url, pipeline
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._owner_token = owner_token
        self.token = self._get("/getToken")["token"]

    def add(self, url: str) -> None:
        """Add a source."""
        self._get("/addSource", url=url, token=self._owner_token)

    def sources(self) -> dict[str, Any]:
        """Return what `/listSources` answers."""
        return self._get("/listSources", token=self.token)

    def count(self, by: str) -> dict[str, Any]:
        """Return what `/count` answers."""
        return self._get("/count", by=by, token=self.token)

    def show_around(self) -> None:
        """Print what else may be asked, with a token that reads for a while."""
        token = self.token
        console.print(f"  curl '{self._url}/getToken'", markup=False)
        for path in ("/listSources", "/count?by=species"):
            sign = "&" if "?" in path else "?"
            console.print(f"  curl '{self._url}{path}{sign}token={token}'", markup=False)
        for path in ("/count?by=kingdom_normalised", "/count/kingdoms", "/count/species"):
            bearer = f"-H 'Authorization: Bearer {token}'"
            console.print(f"  curl {bearer} '{self._pipeline}{path}'", markup=False)

    def _get(self, path: str, **params: str) -> dict[str, Any]:
        answer = self._client.get(path, params=params)
        if answer.status_code != httpx2.codes.OK:
            raise Failed(f"GET {path}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found


def main() -> int:
    """Run the demonstration; return the exit status."""
    ends = "--exit" in sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
        data = Path(RECORDINGS) if (Path(RECORDINGS) / "large").is_dir() else None
        served = stack.enter_context(services(data=data, records=GENERATED))
        told = "recorded" if data else "generated"
        console.print(f"stand-ins of GBIF, OBIS and iDigBio with {told} records: {served.url}")
        try:
            user = stack.enter_context(started(folder, served))
            truth = counted_by_script(data / "large" if data else written(folder, served))
            for kind in KINDS:
                user.add(f"http://{kind}.org")
            counts = settled(user, truth)
            show(counts, truth)
            if not ends:
                user.show_around()
                wait_for_interrupt()
                return 0 if counts == truth else 1
            answers = {by: user.count(by) for by in BY} | {"listSources": user.sources()}
        except Failed as failure:
            console.print(f"[bold red]{failure}[/]")
            return 1
        except KeyboardInterrupt:
            return 130
    if ends:
        sys.stdout.write(json.dumps(answers, ensure_ascii=False) + "\n")
    return 0 if counts == truth else 1


@contextmanager
def started(folder: Path, served: Services) -> Iterator[OldUser]:
    """Run pipeline and old API as processes of their own; yield a user of the latter."""
    data, port, old_port = folder / "data", free_port(), free_port()
    url, old_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{old_port}"
    made = [HEADRACE, "tokens", "create", "--scope", "admin", "--data", data]
    owner_token = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    pipeline = [HEADRACE, "run", HERE / "pipeline.py", "--data", data, "--port", port]
    pipeline += ["--until-eof"]
    old_api = [sys.executable, HERE / "api.py", "--pipeline", url, "--port", old_port]
    old_api += ["--give-tokens", "--until-eof"]
    for kind in KINDS:
        options = {
            "url": getattr(served, kind),
            "requests_per_s": REQUESTS_PER_S,
            "interval_s": 2,
            "contact": "demo@example.org",
        }
        for name, value in options.items():
            old_api += ["--option", f"{kind}.{name}={value}"]
    with ExitStack() as stack:
        log = folder / "pipeline.log"
        running = stack.enter_context(process(pipeline, log, HEADRACE_PRIVATE_ADDRESSES="1"))
        wait_for(f"{url}/healthz", running, log)
        log = folder / "api.log"
        running = stack.enter_context(process(old_api, log, HEADRACE_TOKEN=owner_token))
        wait_for(f"{old_url}/favicon.ico", running, log)
        console.print(f"the pipeline runs at {url}, the old API at {old_url}")
        yield OldUser(old_url, owner_token, url)


@contextmanager
def process(command: list[Any], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block."""
    with log.open("wb") as file:
        running = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **environment},
            # Ends with this script, so that a killed one leaves nothing behind.
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for this script, which ends the others in their order.
            start_new_session=True,
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a process answers; `Failed` with its own words if it does not."""
    deadline_s = CLOCK.monotonic_s() + START_S_MAX
    while running.poll() is None and CLOCK.monotonic_s() < deadline_s:
        try:
            if httpx2.get(url, timeout=5).is_success:
                return
        except httpx2.TransportError:
            pass
        CLOCK.sleep(0.1)
    raise Failed(f"{url} does not answer: {log.read_text(errors='replace')}")


def written(folder: Path, served: Services) -> Path:
    """Write what the services have as files for the script."""
    for kind in KINDS:
        with (folder / f"{kind}.ndjson").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in served.truth(kind))
    return folder


def counted_by_script(folder: Path) -> Counts:
    """Return what the plain script counts: a process of its own, without Headrace."""
    script = [sys.executable, "-I", HERE / "truth.py", folder]
    ended = subprocess.run(script, check=True, capture_output=True, text=True)
    found: Counts = json.loads(ended.stdout)
    return found


def settled(user: OldUser, truth: Counts) -> Counts:
    """Return the counts once they equal the script's, or when that took too long."""
    deadline_s = CLOCK.monotonic_s() + SETTLE_S_MAX
    began_s = CLOCK.monotonic_s()
    shown: Counts = {}
    while True:
        counts: Counts = {by: user.count(by)["count"] for by in BY}
        if counts != shown:
            shown = counts
            sources = ", ".join(f"{name} {n:,}" for name, n in counts["source"].items())
            species = counts["species"].get("all sources", 0)
            passed_s = CLOCK.monotonic_s() - began_s
            console.print(
                f"{passed_s:5.1f} s  records: {sources or 'none yet'}; species: {species:,}; "
                f"kingdoms: {len(counts['kingdom'])}"
            )
        if counts == truth or CLOCK.monotonic_s() > deadline_s:
            return counts
        CLOCK.sleep(POLL_S)


def show(counts: Counts, truth: Counts) -> None:
    """Print every count with the script's beside it."""
    for by in BY:
        table = Table(title=f"/count?by={by}", title_justify="left", box=None)
        table.add_column(by)
        for column in ("counted", "by the script"):
            table.add_column(column, justify="right")
        table.add_column("")
        for name in dict.fromkeys([*truth[by], *counts[by]]):
            ours, theirs = counts[by].get(name), truth[by].get(name)
            table.add_row(name, number(ours), number(theirs), "" if ours == theirs else "differs")
        console.print(table)
    species = counts["species"]
    union = species.get("all sources", 0)
    total = sum(n for name, n in species.items() if name != "all sources")
    console.print(f"species over the union: {union:,}; the sum over the sources: {total:,}")
    equal = counts == truth
    console.print("[green]every count equals the script's[/]" if equal else "[red]they differ[/]")


def number(n: int | None) -> str:
    """Return a count as people read it."""
    return "none" if n is None else f"{n:,}"


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C."""
    console.print("it goes on until Ctrl-C")
    with suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
