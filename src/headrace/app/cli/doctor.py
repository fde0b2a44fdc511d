"""`headrace doctor`: whether machine, data directory and clusters are fit to run a pipeline."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psutil
from rich.markup import escape

from headrace.app import deployment_file
from headrace.app.cli.doctor_cluster import examine_deployment
from headrace.app.cli.finding import Finding
from headrace.app.cli.options import data_option, deployment_options, json_option
from headrace.app.cli.printing import console, print_json, size_text
from headrace.app.cli.run import PORT
from headrace.app.cli.status import is_running
from headrace.app.data_directory import find_plan
from headrace.app.deployment_file import Wanted
from headrace.app.pipeline_file import require_plan
from headrace.control import certificate
from headrace.log.segment import check_sqlite
from headrace.model.clock import Clock, SystemClock
from headrace.model.deployment import Deployment, HttpSettings
from headrace.model.errors import HeadraceError
from headrace.model.layout import Layout

FREE_BYTES_MIN = 1 << 30
MEMORY_BYTES_MIN = 1 << 30
FSYNC_S_MAX = 0.05
"""A disk that takes longer for a few bytes acknowledges few requests a second."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afpfs"}
"""Where locks or renames are not what they are on a local disk."""
RENEW_S_MIN = 14 * 86_400.0
"""A certificate that ends sooner is to be renewed; authorities make them for some weeks."""
LIBRARIES = ("apsw", "duckdb", "granian", "msgspec", "pyarrow", "sqlglot", "starlette")


@click.command()
@click.argument(
    "pipeline", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=False
)
@data_option
@deployment_options
@json_option
def doctor(pipeline: Path | None, layout: Layout, wanted: Wanted, *, as_json: bool) -> int:
    """Look at Python, libraries, memory, disk, sync, locks and port; say what to mend.

    Where log, tables or epochs are elsewhere, at those too: Kafka's brokers and their clocks, how
    the topics of PIPELINE (of the last run, if it is not given) and of the state are kept, whether
    of two owners one wins on the tables' storage, and the versions on Spark's workers. A topic and
    a file are made for it, and deleted. Status 2 if something is not as it should be.
    """
    clock = SystemClock()
    before = deployment_file.kept(layout) or Deployment()
    deployment = deployment_file.wish(wanted, before)
    plan = require_plan(pipeline) if pipeline else find_plan(layout)
    findings = [*examine(layout, clock), *examine_deployment(deployment, plan, clock)]
    http = deployment.http if deployment.http.is_tls else before.http
    if http.is_tls:
        findings.append(_certificate(http, clock))
    if as_json:
        print_json([f._asdict() for f in findings])
    else:
        for finding in findings:
            mark = "[green]ok  [/]" if finding.fine else "[bold red]mend[/]"
            console().print(f"{mark} {finding.what}: {escape(finding.found)}", soft_wrap=True)
            if not finding.fine:
                console().print(f"       [cyan]hint:[/] {escape(finding.hint)}", soft_wrap=True)
    return 0 if all(f.fine for f in findings) else 2


def examine(layout: Layout, clock: Clock) -> Iterator[Finding]:
    """Yield what is found of this machine and a data directory."""
    yield _platform()
    yield Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "use 3.11 on")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield Finding("libraries", fine=True, found=versions)
    yield _sqlite()
    memory = psutil.virtual_memory().available
    yield Finding(
        "memory", memory > MEMORY_BYTES_MIN, f"{size_text(memory)} free", "1 GB should be free"
    )
    folder = _nearest(layout.root)
    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk", free > FREE_BYTES_MIN, f"{size_text(free)} free at {folder}",
        "make room: without any, events are refused until there is some",
    )  # fmt: skip
    yield _file_system(folder)
    yield _sync(folder, clock)
    yield from _owner(layout)
    yield _port(layout)


def _platform() -> Finding:
    name = platform.system()
    fine = name in {"Linux", "Darwin"}
    return Finding("platform", fine, platform.platform(terse=True), "Linux and macOS are supported")


def _sqlite() -> Finding:
    # APSW's wheel brings its own SQLite and has its version, with one more number behind.
    version = importlib.metadata.version("apsw")
    try:
        check_sqlite(version)
        return Finding("SQLite", fine=True, found=version)
    except HeadraceError as error:
        return Finding("SQLite", fine=False, found=error.message, hint=error.hint)


def _nearest(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next(p for p in (path, *path.parents) if p.is_dir())


def _file_system(folder: Path) -> Finding:
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "unknown"
    return Finding(
        "file system",
        kind not in NETWORK_FILE_SYSTEMS,
        kind,
        "put the data directory on a local disk: locks and syncs over a network may fail",
    )


def _sync(folder: Path, clock: Clock) -> Finding:
    """Write and sync a few bytes, as each group of acknowledged events does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times = [_timed(clock, lambda: _write_synced(file.fileno())) for _ in range(5)]
    except OSError as error:
        hint = "give the folder to this user"
        return Finding("sync", fine=False, found=f"{folder}: {error.strerror}", hint=hint)
    median_s = sorted(times)[len(times) // 2]
    hint = "a disk this slow to sync acknowledges few requests a second"
    return Finding("sync", median_s < FSYNC_S_MAX, f"{1000 * median_s:.2f} ms", hint)


def _write_synced(handle: int) -> None:
    os.write(handle, b"headrace")
    os.fsync(handle)


def _timed(clock: Clock, act: Callable[[], None]) -> float:
    before_s = clock.monotonic_s()
    act()
    return clock.monotonic_s() - before_s


def _owner(layout: Layout) -> Iterator[Finding]:
    if layout.root.is_dir():
        # To pass through is harmless, for what lies inside is closed: it is how an engine that runs
        # as another user is let in to the tables alone.
        mode = layout.root.stat().st_mode & 0o066
        hint = f"chmod 700 {layout.root}: events are nobody else's"
        yield Finding("data directory", mode == 0, f"{layout.root}, mode 0{mode | 0o700:o}", hint)


def _certificate(http: HttpSettings, clock: Clock) -> Finding:
    try:
        ends = certificate.check(Path(http.tls_cert), Path(http.tls_key), clock.now_us())
    except HeadraceError as error:
        return Finding("certificate", fine=False, found=error.message, hint=error.hint)
    left_s = ends.timestamp() - clock.now_us() / 1e6
    hint = "renew it in time: a run takes the renewed files by itself"
    return Finding("certificate", left_s > RENEW_S_MIN, f"until {ends:%Y-%m-%d %H:%M} UTC", hint)


def _port(layout: Layout) -> Finding:
    if is_running(layout):
        return Finding("port", fine=True, found="a run is alive on the data directory")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            hint = "choose another with `headrace run --port`"
            return Finding("port", fine=False, found=f"{PORT}: {error.strerror}", hint=hint)
    return Finding("port", fine=True, found=f"{PORT} is free")
