"""An S3 server of one's own on loopback, for tests and trials: versitygw, else moto.

versitygw (Apache-2.0) keeps objects as files of a folder. It is built once by `go install` into the
user's cache folder, which takes a minute or two. Where there is no Go, moto's server is used if it
is installed: it keeps objects in memory.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.app.cluster.ports import free_port
from headrace.model.clock import Clock
from headrace.model.errors import Unavailable

VERSITYGW = "v1.8.0"
ACCESS_KEY, SECRET_KEY, REGION = "headrace-test", "headrace-test-secret", "us-east-1"
BUCKET = "headrace"
_MODULE = "github.com/versity/versitygw/cmd/versitygw"
_BUILD_S_MAX = 900
_START_S_MAX = 30.0
_STOP_S_MAX = 10.0
_POLL_S = 0.05


@dataclass(frozen=True)
class ObjectServer:
    """A server that runs; it has the bucket `BUCKET`."""

    kind: str
    """`versitygw` or `moto`."""
    endpoint: str
    """`http://127.0.0.1:PORT`."""

    def options(self, endpoint: str = "") -> dict[str, str]:
        """Return what `tables.objects.ObjectStorage` needs to use it, perhaps through a proxy."""
        return {
            "endpoint": endpoint or self.endpoint,
            "region": REGION,
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        }

    def environment(self) -> dict[str, str]:
        """Return the same as variables that AWS's tools, `deltalake` and Headrace read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }


@contextmanager
def object_server(folder: Path, clock: Clock) -> Iterator[ObjectServer]:
    """Run a server that keeps its objects in `folder`; `Unavailable` says why there can be none."""
    port = free_port()
    command, kind = _command(folder, port)
    secrets = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **secrets}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _wait(endpoint, process, clock)
        if kind == "moto":
            _ask(f"{endpoint}/{BUCKET}", "PUT")
        yield ObjectServer(kind, endpoint)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(folder: Path, port: int) -> tuple[list[str], str]:
    go = shutil.which("go")
    if go is not None:
        program = _built(go)
        if program is not None:
            (folder / "buckets" / BUCKET).mkdir(parents=True)
            where = ["--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive"]
            return [str(program), *where, "posix", str(folder / "buckets")], "versitygw"
    if importlib.util.find_spec("moto") is not None:
        server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        return server, "moto"
    reason = "versitygw could not be built with `go install`" if go else "there is no Go"
    raise Unavailable(
        f"No S3 server can be run: {reason}, and moto is not installed",
        hint="Install Go, or pip install 'moto[server]'",
    )


def _built(go: str) -> Path | None:
    """Return the program, built if it was not before; None if it cannot be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "headrace" / f"versitygw-{VERSITYGW}"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "versitygw"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            subprocess.run(
                [go, "install", f"{_MODULE}@{VERSITYGW}"],
                env={**os.environ, "GOBIN": str(folder)},
                timeout=_BUILD_S_MAX,
                capture_output=True,
                check=False,
            )
    return program if program.exists() else None


def _wait(endpoint: str, process: subprocess.Popen[bytes], clock: Clock) -> None:
    deadline_s = clock.monotonic_s() + _START_S_MAX
    while process.poll() is None and clock.monotonic_s() < deadline_s:
        try:
            _ask(endpoint, "GET")
        except OSError:
            clock.sleep(_POLL_S)
        else:
            return
    raise Unavailable("The S3 server did not start", hint="See its server.log")


def _ask(url: str, method: str) -> None:
    """Ask without signing; being refused is an answer."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5).close()
    except urllib.error.HTTPError as e:
        e.close()
