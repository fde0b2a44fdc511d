"""HDFS of one's own on loopback, for tests: a name node and a data node of Hadoop in one process.

It needs Java 17 and, for the first time, Maven, which brings Hadoop (89 MB) into the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.model.clock import Clock
from headrace.model.errors import Unavailable

HADOOP = "3.4.2"
_LIBRARIES = (
    ("org.apache.hadoop", "hadoop-client-api", HADOOP),
    ("org.apache.hadoop", "hadoop-client-runtime", HADOOP),
    ("org.apache.hadoop", "hadoop-client-minicluster", HADOOP),
    ("org.slf4j", "slf4j-simple", "1.7.36"),
    ("javax.xml.bind", "jaxb-api", "2.3.1"),
    ("javax.activation", "javax.activation-api", "1.2.0"),
)
_PROGRAM = """
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.MiniDFSCluster;

public class Hdfs {
  public static void main(String[] arguments) throws Exception {
    Configuration configuration = new Configuration();
    configuration.set("hdfs.minidfs.basedir", arguments[0]);
    MiniDFSCluster cluster = new MiniDFSCluster.Builder(configuration).numDataNodes(1).build();
    cluster.waitActive();
    System.out.println("READY " + cluster.getNameNodePort());
    System.out.flush();
    while (System.in.read() != -1) {}
    System.exit(0);
  }
}
"""
_DOWNLOAD_S_MAX = 600
_START_S_MAX = 180.0
_STOP_S_MAX = 20.0
_POLL_S = 0.2


@contextmanager
def hdfs_server(folder: Path, clock: Clock) -> Iterator[str]:
    """Run HDFS that keeps its blocks in `folder`; give its URL, `hdfs://127.0.0.1:PORT`.

    `Unavailable` says why there can be none. It ends by itself if this process does.
    """
    java = shutil.which("java")
    if java is None:
        raise Unavailable("No HDFS can be run: there is no Java", hint="Install Java 17")
    libraries = _libraries()
    (folder / "Hdfs.java").write_text(_PROGRAM)
    command = [java, "-Xmx256m", "-XX:+UseSerialGC", "-cp", f"{libraries}/*"]
    command += [str(folder / "Hdfs.java"), str(folder / "blocks")]
    said = folder / "hdfs.out"
    with said.open("wb") as out, (folder / "hdfs.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log)
    try:
        yield f"hdfs://127.0.0.1:{_port(said, process, clock)}"
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(said: Path, process: subprocess.Popen[bytes], clock: Clock) -> int:
    deadline_s = clock.monotonic_s() + _START_S_MAX
    while process.poll() is None and clock.monotonic_s() < deadline_s:
        words = said.read_text().split()
        if words[:1] == ["READY"] and len(words) > 1:
            return int(words[1])
        clock.sleep(_POLL_S)
    raise Unavailable("HDFS did not start", hint="See its hdfs.log")


def _libraries() -> Path:
    """Return the folder of Hadoop's libraries, brought there if they were not before."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "headrace" / f"hdfs-{HADOOP}"
    folder.mkdir(parents=True, exist_ok=True)
    libraries, complete = folder / "libraries", folder / "complete"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.exists():
            return libraries
        maven = shutil.which("mvn")
        if maven is None:
            raise Unavailable("No HDFS can be run: there is no Maven", hint="Install Maven")
        (folder / "pom.xml").write_text(_pom())
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={libraries}"]
        done = subprocess.run(
            [maven, "-q", "-B", "-f", str(folder / "pom.xml"), *goal, "-DincludeScope=runtime"],
            timeout=_DOWNLOAD_S_MAX,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise Unavailable("No HDFS can be run: Maven could not bring Hadoop")
        complete.touch()
    return libraries


def _pom() -> str:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId>"
        f"<version>{version}</version></dependency>"
        for group, name, version in _LIBRARIES
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>headrace</groupId><artifactId>hdfs</artifactId><version>1</version>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
