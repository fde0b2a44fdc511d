"""What the serve role counts of itself, and `/metrics` of the whole pipeline.

Every other role writes `run/metrics-<role>.prom`, a whole file at a time; they are put together
here, each metric's help and type once, as the text format wants it.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from headrace.model.clock import Clock

METRICS = {
    "headrace_serve_requests_total": "Requests answered, by path, method and status",
    "headrace_serve_request_seconds": "Time from a request to its answer, by path",
    "headrace_serve_queries_waiting": "Queries that run or wait for a thread",
    "headrace_serve_epoch": "The newest epoch that readers see",
    "headrace_role_report_age_seconds": "Time since a role last wrote its metrics, by role",
}
"""Name → meaning of every metric of this role."""

PATTERN = "metrics-*.prom"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server."""

    def __init__(self, run: Path, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "headrace_serve_requests",
            METRICS["headrace_serve_requests_total"],
            ["path", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "headrace_serve_request_seconds",
            METRICS["headrace_serve_request_seconds"],
            ["path"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._waiting = self._gauge("headrace_serve_queries_waiting")
        self._epoch = self._gauge("headrace_serve_epoch")
        self._age = self._gauge("headrace_role_report_age_seconds", "role")

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request; `path` is a declared one, never what a client made up."""
        self._requests.labels(path, method, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self, waiting: int, epoch: int) -> bytes:
        """Return every role's metrics in the Prometheus text format."""
        self._waiting.set(waiting)
        self._epoch.set(epoch)
        texts = []
        for path in sorted(self._run.glob(PATTERN)):
            try:
                texts.append(path.read_text(encoding="utf-8"))
                age_s = self._clock.now_us() / 1e6 - path.stat().st_mtime
            except (FileNotFoundError, UnicodeDecodeError):
                # Taken away in this moment, or not written by a role.
                continue
            role = path.name.removeprefix("metrics-").removesuffix(".prom")
            self._age.labels(role).set(round(max(0.0, age_s), 3))
        own = generate_latest(self._registry).decode()
        return merged([*texts, own]).encode()

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(name, METRICS[name], labels, registry=self._registry)


def merged(texts: list[str]) -> str:
    """Return texts in the Prometheus format as one, every family in one piece.

    The times at which counters were made are left out: nobody reads them.
    """
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, word, family, *_ = line.split(" ", 3)
                if family.endswith("_created"):
                    continue
                heads.setdefault(family, {}).setdefault(word, line)
                samples.setdefault(family, [])
            elif line and not line.startswith("#") and not family.endswith("_created"):
                name = line.split("{", 1)[0].split(" ", 1)[0]
                # A sample belongs to the family above it, whose name its own begins with.
                owner = family if family and name.startswith(family) else name
                heads.setdefault(owner, {})
                samples.setdefault(owner, []).append(line)
    lines = [
        line
        for family, rows in samples.items()
        for line in (*(heads[family][w] for w in ("HELP", "TYPE") if w in heads[family]), *rows)
    ]
    return "\n".join(lines) + "\n" if lines else ""
