"""How much came through, how soon, and how long an epoch took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from headrace.app.report.known import Known
from headrace.app.report.parts import Chart, Section, Series, Unit
from headrace.app.report.scale import SECOND_US
from headrace.app.report.svg import SERIES_MAX
from headrace.process.status import freshness_s_of

_NOTHING = "Nothing was processed in this time, or it was too long ago."
_BY_TOPIC = (
    "By topic it is as the ledger has it, which forgets epochs after an hour unless the pipeline's "
    "option keep_commits says otherwise."
)
_AGE = (
    "Of each epoch, from when the last record that it read of a partition had been received until "
    "it was committed, the longest of its partitions."
)
_LEDGER_LATE = 10
"""Points by which the ledger may begin later than the samples and still tell all there is."""

Values = Mapping[int, float | None]
"""Time of a point → its value."""


def throughput(known: Known) -> Section:
    """Records read from the log, by topic as the ledger has it, and in all as the samples do."""
    begin_us = known.epochs[0].committed_at_us if known.epochs else known.end_us
    is_late = begin_us > known.begin_us + _LEDGER_LATE * known.bucket_us
    charts = []
    if known.epochs:
        # Of a long time the ledger may know the end only, which has an axis of its own then.
        charts.append(_by_topic(replace(known, begin_us=begin_us) if is_late else known))
    in_all = Series("all topics", line(known, _in_all(known)))
    if in_all.points and is_late:
        charts.append(chart(known, "Records processed, all topics", "/s", [in_all]))
    if in_all.points:
        waiting = {_t(row): _number(row["n"]) for row in known.samples("max(behind) AS n")}
        series = [Series("records", line(known, waiting))]
        charts.append(chart(known, "Records that no table contains yet", "", series))
    return Section(
        "throughput", "Throughput", (_BY_TOPIC,) if charts else (_NOTHING,), tuple(charts)
    )


def _by_topic(known: Known) -> Chart:
    by_topic: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in known.epochs:
        for topic, count in row.topics.items():
            by_topic[topic][_bucket(known, row.committed_at_us)] += count.read
    series = [
        Series(topic, line(known, _rates(known, counts, known.epochs[0].committed_at_us)))
        for topic, counts in sorted(by_topic.items())
    ]
    return chart(known, "Records processed, by topic", "/s", series)


def freshness(known: Known) -> Section:
    """How old the newest records were when they came to be seen, and how long epochs took."""
    seen: dict[int, list[float]] = defaultdict(list)
    for row in known.epochs:
        age_s = freshness_s_of(row)
        if age_s is not None:
            seen[_bucket(known, row.committed_at_us)].append(age_s)
    ages = {t: (max(of), statistics.median(of)) for t, of in seen.items()}
    sampled = known.samples(
        "max(freshness_s) AS oldest, median(freshness_s) AS middle, avg(epoch_s) AS mean, "
        "max(epoch_s) AS longest"
    )
    for sample in sampled:
        oldest, middle = _number(sample["oldest"]), _number(sample["middle"])
        if oldest is not None and middle is not None:
            ages.setdefault(_t(sample), (oldest, middle))
    charts = []
    if ages:
        lines = [
            Series(name, line(known, {t: of[i] for t, of in ages.items()}))
            for i, name in enumerate(("longest", "median"))
        ]
        charts.append(chart(known, "From received to committed", "s", lines))
    took = [
        Series(name, line(known, {_t(r): _number(r[name]) for r in sampled if r[name] is not None}))
        for name in ("longest", "mean")
    ]
    if took[0].points:
        charts.append(chart(known, "Time that an epoch takes", "s", took))
    return Section("freshness", "Freshness", (_AGE,) if charts else (_NOTHING,), tuple(charts))


def _in_all(known: Known) -> Values:
    """Return records a second, from how the total grew between points."""
    rates: dict[int, float | None] = {}
    before: tuple[int, float] | None = None
    for row in known.samples("max(records) AS n, max(epoch_us(sampled_at)) AS at"):
        total, at_us = _number(row["n"]), int(str(row["at"]))
        if total is None:
            continue
        if before is not None and at_us > before[0] and total >= before[1]:
            rates[_t(row)] = (total - before[1]) / (at_us - before[0]) * SECOND_US
        before = (at_us, total)
    return rates


def _rates(known: Known, counts: Mapping[int, float], begin_us: int) -> Values:
    """Return counts as rates; 0 where there are none."""
    width = known.bucket_us
    rates: dict[int, float | None] = {}
    for t in range(_bucket(known, begin_us), known.end_us, width):
        length_us = min(t + width, known.end_us) - max(t, known.begin_us)
        # What is hardly begun would look like a peak.
        if length_us >= min(width, SECOND_US):
            rates[t] = counts.get(t, 0) / length_us * SECOND_US
    return rates


def line(known: Known, values: Values) -> tuple[tuple[int, float | None], ...]:
    """Return points in order, in the middle of the time that each stands for.

    Where points are missing the line is broken.
    """
    half, width = known.bucket_us // 2, known.bucket_us
    points: list[tuple[int, float | None]] = []
    before = None
    for t in sorted(values):
        if before is not None and t - before > 3 * width:
            points.append((before + width, None))
        points.append((min(max(t + half, known.begin_us), known.end_us), values[t]))
        before = t
    return tuple(points)


def chart(known: Known, title: str, unit: Unit, series: Iterable[Series]) -> Chart:
    """Return a chart of the report's time, with as many lines as can be told apart."""
    every = list(series)
    return Chart(
        title,
        unit,
        tuple(every[:SERIES_MAX]),
        known.begin_us,
        known.end_us,
        left_out=max(0, len(every) - SERIES_MAX),
    )


def _bucket(known: Known, us: int) -> int:
    return us // known.bucket_us * known.bucket_us


def _t(row: Mapping[str, object]) -> int:
    return int(str(row["t"]))


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
