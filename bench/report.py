"""Writes docs/benchmarks.md from the JSON lines in bench/results.

    python bench/report.py

A benchmark that was not run here is said to be missing; nothing is kept of an older report.
"""

from __future__ import annotations

import json
from pathlib import Path

from measure import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BUSY = 0.5
"""A load average so far above the processors' number says that other work shared the machine."""

INTRODUCTION = """\
# Benchmarks

`make bench` and `make bench-cluster` measure and write this page;
[bench/README.md](../bench/README.md) says what each benchmark does and what stands beside it. A
figure means little alone: read the ratio, which compares both sides within one run on one machine,
alternating, medians.
"""
ABOUT = {
    "door": "Durable acknowledgements over HTTP. Ratio: to the same server without a log.",
    "stage": "An epoch in memory. Ratio: to the best bare DuckDB over the same Arrow.",
    "pipeline": "Log to durable table and three views. Ratio: to DuckDB doing it once in memory, "
    "and to Structured Streaming making a table and one count from Kafka.",
    "fresh": "From a POST to its count in an answer. Ratio: p99 to the epoch interval.",
    "keyed": "Changing some keys of a large table. Ratio: publish to DuckDB writing it whole.",
    "growth": "The cost of an epoch of 250 rows. Ratio: to the smallest of its kind; flat is 1.",
    "listeners": "From a POST to its count in the page that each listener of a live view gets."
    " Ratio: p99 to that of a few listeners.",
    "sql_beside": "Acknowledgements while hostile SQL is asked for. Ratio: to nothing beside.",
    "cluster": "Epochs on Kafka and Spark. Ratio: to Structured Streaming doing the same there.",
    "driver": "Memory held on Kafka and Spark as groups grow. Ratio: to the fewest groups.",
}


def section(name: str, about: str) -> str:
    """Return the text of one benchmark."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"## {name}\n\n{about}\n\nNot measured yet.\n"
    told = json.loads(path.read_text())
    columns = list(told["rows"][0])
    lines = [
        f"| {' | '.join(columns)} |",
        f"| --- |{' ---: |' * (len(columns) - 1)}",
        *(f"| {' | '.join(_text(row[c]) for c in columns)} |" for row in told["rows"]),
    ]
    table = "\n".join(lines)
    settings = ", ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in told["settings"].items())
    return f"## {name}\n\n{about}\n\n{table}\n\n{told['date']}; {settings}. {_machine(told)}\n"


def _machine(told: dict) -> str:
    machine = dict(told["machine"])
    load = machine.pop("load")
    cpus, cpu = machine.pop("cpus"), machine.pop("cpu")
    versions = ", ".join(f"{k} {v}" for k, v in machine.items() if k != "system")
    # Brokers and Spark that take part are load too: then only what was there before tells.
    others = told["settings"].get("load_before", load)
    busy = " (shared with other work: to be run again)" if others > cpus + BUSY else ""
    return f"{cpus} x {cpu}, {machine['system']}, load average {load}{busy}; {versions}."


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def main() -> None:
    PAGE.write_text("\n".join([INTRODUCTION, *(section(n, a) for n, a in ABOUT.items())]))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
