"""Makes the files that the factory's stream server streams: the same for the same seed.

    python examples/factory/data.py FOLDER [--seed 1] [--minutes 60]

`metrics.json`: a JSON array of what machines measure. `workorder.json`: a line for each step of an
order. Neither is in the order of its times; the server sorts.
"""

import argparse
import json
import random  # noqa: TID251 - seeded, so the files are the same each time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

MACHINES = ("press-1", "press-2", "lathe-1", "oven-1")
BEGIN = datetime(2026, 1, 5, 6, tzinfo=UTC)
METRIC_EVERY_S = 5
USUAL = {"temperature": (60.0, 4.0), "vibration": (1.2, 0.3), "power": (18.0, 2.5)}
"""Metric → mean and spread."""


def metrics(chance: random.Random, minutes: int) -> Iterator[dict[str, object]]:
    """Yield what each machine measures every few seconds."""
    for step in range(minutes * 60 // METRIC_EVERY_S):
        for machine in MACHINES:
            at = BEGIN + timedelta(
                seconds=step * METRIC_EVERY_S, milliseconds=chance.randrange(500)
            )
            name = chance.choice(sorted(USUAL))
            value = round(chance.gauss(*USUAL[name]), 2)
            yield {"time": text(at), "machine": machine, "metric": name, "value": value}


def workorders(chance: random.Random, minutes: int) -> Iterator[dict[str, object]]:
    """Yield the steps of orders, one order after another on each machine."""
    number = 0
    for machine in MACHINES:
        at = BEGIN
        while at < BEGIN + timedelta(minutes=minutes):
            number += 1
            order = f"WO-{number:05d}"
            pieces = chance.randrange(20, 200)
            scrapped = chance.randrange(pieces // 10 + 1)
            yield step(at, machine, order, "started", 0)
            at += timedelta(seconds=chance.randrange(60, 400))
            if scrapped:
                yield step(at, machine, order, "scrapped", scrapped)
            yield step(at, machine, order, "finished", pieces - scrapped)
            at += timedelta(seconds=chance.randrange(5, 60))


def step(at: datetime, machine: str, order: str, name: str, pieces: int) -> dict[str, object]:
    """Return a step of an order."""
    return {"time": text(at), "machine": machine, "order": order, "step": name, "pieces": pieces}


def text(at: datetime) -> str:
    """Return a time as text whose order is that of time."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(folder: Path, seed: int = 1, minutes: int = 60) -> None:
    """Write both files into a folder."""
    chance = random.Random(seed)  # noqa: S311 - nothing hangs on it
    folder.mkdir(parents=True, exist_ok=True)
    measured = list(metrics(chance, minutes))
    chance.shuffle(measured)
    (folder / "metrics.json").write_text(json.dumps(measured))
    lines = [json.dumps(done) for done in workorders(chance, minutes)]
    (folder / "workorder.json").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=int, default=60)
    options = parser.parse_args()
    write(options.folder, options.seed, options.minutes)


if __name__ == "__main__":
    main()
