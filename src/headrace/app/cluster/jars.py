"""Where the trial cluster's programs come from: Maven Central, once, into a cache of the user's.

`HEADRACE_CACHE` names the cache's folder; else it is `headrace` in the user's own cache folder.
What is downloaded stands in a `pom.xml` beside this file, with its versions: `kafka` is a broker,
`spark` the jars that a Spark session needs to read Kafka and Delta tables without Headrace.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from headrace.model.errors import Invalid, Unavailable

JAVA_MIN = 17
"""Kafka 4's brokers ask for it."""
DOWNLOAD_S_MAX = 600.0
_ANSWER_S_MAX = 30.0


def cache_folder() -> Path:
    """Return the folder that downloads are kept in; it may not be there yet."""
    named = os.environ.get("HEADRACE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def missing(name: str) -> str | None:
    """Return why the programs that `name`-pom.xml lists cannot be run here; None if they can."""
    java = shutil.which("java")
    if java is None:
        return f"Java {JAVA_MIN} or later is not installed"
    version = _java_version(java)
    if version < JAVA_MIN:
        return f"Java {JAVA_MIN} or later is needed, and `java` is version {version}"
    if not _jars_of(name).is_dir() and shutil.which("mvn") is None:
        return "Maven (`mvn`), which downloads the programs, is not installed"
    return None


def jars(name: str) -> Path:
    """Return the folder with the jars that `name`-pom.xml lists, downloaded if need be.

    Raises `Invalid` if Java or Maven is missing, `Unavailable` if the download fails.
    """
    reason = missing(name)
    if reason:
        raise Invalid(f"The trial cluster cannot run: {reason}", code="java_missing")
    folder = _jars_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _download(name, folder)
    return folder


def _jars_of(name: str) -> Path:
    """Return where these jars are kept: another list of versions has another folder."""
    digest = hashlib.blake2b(_pom(name).encode(), digest_size=4).hexdigest()
    return cache_folder() / "jars" / f"{name}-{digest}"


def _pom(name: str) -> str:
    beside = importlib.resources.files("headrace.app.cluster")
    return (beside / f"{name}-pom.xml").read_text(encoding="utf-8")


def _download(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        pom, found = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(_pom(name), encoding="utf-8")
        # Each list names the goal that copies its jars.
        command = ["mvn", "-q", "-B", "-f", str(pom)]
        command += [f"-DoutputDirectory={found}", "-DincludeScope=runtime"]
        try:
            done = subprocess.run(  # noqa: S603 - Maven with our own list
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DOWNLOAD_S_MAX,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable("The download from Maven Central took too long") from None
        if done.returncode or not found.is_dir():
            raise Unavailable(
                f"The download from Maven Central failed: {done.stdout[-2000:]}",
                hint=f"Maven must reach its registry; what it gets is kept in {cache_folder()}",
                code="download_failed",
            )
        found.rename(folder)


def _java_version(java: str) -> int:
    """Return Java's major version; 0 if it does not say."""
    try:
        told = subprocess.run(  # noqa: S603 - the user's own Java
            [java, "-version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', told.stderr + told.stdout)
    return int(found.group(1)) if found else 0
