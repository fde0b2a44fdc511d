"""A trial cluster's folder: its brokers' settings, and starting and stopping them.

Three Kafka nodes, each broker and controller, keep every record on all three and answer once two
have it. They listen on 127.0.0.1 alone, on ports that were free when the folder was made. Each has
a plain listener and one with passwords (`SASL_PLAINTEXT`, mechanism PLAIN), so that both can be
tried. It is no production cluster: all three share one machine and one disk.
"""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import psutil

from headrace.app.cluster.jars import jars
from headrace.app.cluster.keeper import LOCK, PIDS, PROGRAMS, STOP_S_MAX, Program
from headrace.control.files import replace
from headrace.log.kafka import Kafka, nodes_of
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable

HOST = "127.0.0.1"
NODES = 3
READY_S_MAX = 90.0
ANSWER_S_MAX = 5.0
POLL_S = 0.25
USER = "trial"
_HEAP = ("-Xmx256m", "-Xms64m", "-XX:+UseSerialGC")
_CLUSTER, _MADE = "cluster.json", "made"


class Cluster(msgspec.Struct, frozen=True):
    """What the folder of a trial cluster says of it."""

    ports: list[int]
    """Of the plain listeners, one a node."""
    controller_ports: list[int]
    password_ports: list[int]
    password: str
    """Of the user `USER`, on the listeners with passwords."""

    @property
    def bootstrap(self) -> str:
        """Addresses of the plain listeners, as Kafka's clients want them."""
        return _addresses(self.ports)

    @property
    def password_bootstrap(self) -> str:
        """Addresses of the listeners with passwords."""
        return _addresses(self.password_ports)


def up(folder: Path, clock: Clock, *, until_pid: int | None = None) -> Cluster:
    """Start the cluster in `folder`, made if need be, and return when all its nodes are there.

    It runs on until `down`, or until the process `until_pid` has ended. Raises `Invalid` if Java is
    missing, `Unavailable` if the nodes do not come up.
    """
    libraries = jars("kafka")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop_orphans(folder)
    cluster = _made(folder, libraries, clock)
    command = [sys.executable, "-m", "headrace.app.cluster.keeper", str(folder)]
    command += [] if until_pid is None else [str(until_pid)]
    with (folder / "keeper.out").open("ab") as output:
        keeper = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(cluster, clock)
    except BaseException:
        keeper.terminate()
        keeper.wait()
        raise
    return cluster


def down(folder: Path) -> bool:
    """Stop the cluster in `folder`; return whether there was anything to stop."""
    keeper = _keeper(folder)
    if keeper is not None:
        keeper.terminate()
        # The keeper kills what hangs, so it needs little longer than that itself.
        with suppress(psutil.TimeoutExpired):
            keeper.wait(2 * STOP_S_MAX)
    return stop_orphans(folder) or keeper is not None


def running(folder: Path) -> Cluster | None:
    """Return the cluster in `folder` if its keeper runs."""
    return _cluster(folder) if _keeper(folder) is not None else None


def pids(folder: Path) -> dict[str, int]:
    """Return the process ids of the programs that were started, by name."""
    try:
        return msgspec.json.decode((folder / PIDS).read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}


def start_missing(folder: Path, clock: Clock) -> None:
    """Start those nodes of a running cluster again that have ended, and wait for them."""
    keeper, cluster = _keeper(folder), _cluster(folder)
    if keeper is None or cluster is None:
        raise Invalid(f"No cluster runs in {folder}", code="cluster_down")
    keeper.send_signal(signal.SIGHUP)
    wait_until_ready(cluster, clock)


def wait_until_ready(cluster: Cluster, clock: Clock, nodes: int = NODES) -> None:
    """Return when so many nodes have joined under a controller; `Unavailable` if they do not."""
    deadline_s = clock.monotonic_s() + READY_S_MAX
    kafka = Kafka(cluster.bootstrap, timeout_s=ANSWER_S_MAX)
    while True:
        with suppress(Unavailable):
            if len(nodes_of(kafka, clock)) >= nodes:
                return
        if clock.monotonic_s() > deadline_s:
            raise Unavailable(
                f"The trial cluster's {nodes} nodes did not come up in {READY_S_MAX:.0f} s",
                hint="each node's .out file in the cluster's folder tells why",
                code="cluster_not_ready",
            )
        clock.sleep(POLL_S)


def stop_orphans(folder: Path) -> bool:
    """Kill programs that a killed keeper has left; return whether there were any.

    What another process has meanwhile under such an id is told by its command, and left alone.
    """
    if _keeper(folder) is not None:
        return False
    found = False
    for pid in pids(folder).values():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
                process.wait(STOP_S_MAX)
                found = True
    (folder / PIDS).unlink(missing_ok=True)
    return found


def _keeper(folder: Path) -> psutil.Process | None:
    """Return the keeper of this folder, told by its command: ids are given out again."""
    try:
        process = psutil.Process(int((folder / LOCK).read_text()))
        words = process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if "headrace.app.cluster.keeper" in words and str(folder) in words else None


def _cluster(folder: Path) -> Cluster | None:
    try:
        return msgspec.json.decode((folder / _CLUSTER).read_bytes(), type=Cluster)
    except FileNotFoundError:
        return None


def _made(folder: Path, libraries: Path, clock: Clock) -> Cluster:
    """Return the cluster in a folder; one that was not made to the end is made anew."""
    found = _cluster(folder) if (folder / _MADE).exists() else None
    cluster = found or _new_cluster(clock)
    (folder / _CLUSTER).write_bytes(msgspec.json.encode(cluster))
    programs = []
    for number in range(NODES):
        properties = folder / f"node-{number + 1}.properties"
        properties.write_text(_properties(folder, cluster, number), encoding="utf-8")
        command = ["java", *_HEAP, "-cp", f"{libraries}/*", "kafka.Kafka", str(properties)]
        name = f"node-{number + 1}"
        programs.append(Program(name, command, str(folder / f"{name}.out")))
    replace(folder / PROGRAMS, msgspec.json.encode(programs))
    if found is None:
        _format(folder, libraries, clock)
        (folder / _MADE).touch()
    return cluster


def _new_cluster(clock: Clock) -> Cluster:
    ports = _free_ports(3 * NODES)
    return Cluster(
        ports[:NODES], ports[NODES : 2 * NODES], ports[2 * NODES :], clock.secret(16).hex()
    )


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; held together, so that all are different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _format(folder: Path, libraries: Path, clock: Clock) -> None:
    """Write each node's first metadata, all nodes at once: most of it is Java's own start."""
    # Kafka's tool takes an id that begins with a dash for an option of its own.
    identity = "A" + base64.urlsafe_b64encode(clock.secret(16)).decode()[:21]
    java = ["java", *_HEAP, "-cp", f"{libraries}/*", "kafka.tools.StorageTool"]
    with ExitStack() as stack:
        tools = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603 - Java with our own settings
                    [*java, "format", "--ignore-formatted", "-t", identity,
                     "-c", str(folder / f"node-{number + 1}.properties")],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for number in range(NODES)
        ]  # fmt: skip
        told = [tool.communicate()[0] for tool in tools]
    failed = [text for tool, text in zip(tools, told, strict=True) if tool.returncode]
    if failed:
        raise Unavailable(f"A Kafka node's folder could not be made: {failed[0]}")


def _properties(folder: Path, cluster: Cluster, number: int) -> str:
    voters = ",".join(f"{n + 1}@{HOST}:{p}" for n, p in enumerate(cluster.controller_ports))
    public = (
        f"PLAINTEXT://{HOST}:{cluster.ports[number]},"
        f"SASL_PLAINTEXT://{HOST}:{cluster.password_ports[number]}"
    )
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'user_{USER}="{cluster.password}";'
    )
    lines = {
        "node.id": number + 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{public},CONTROLLER://{HOST}:{cluster.controller_ports[number]}",
        "advertised.listeners": public,
        "listener.security.protocol.map": (
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT"
        ),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": login,
        "log.dirs": folder / f"node-{number + 1}",
        "num.partitions": 3,
        "default.replication.factor": 3,
        "min.insync.replicas": 2,
        "offsets.topic.replication.factor": 3,
        "offsets.topic.num.partitions": 3,
        "transaction.state.log.replication.factor": 3,
        "transaction.state.log.min.isr": 2,
        "transaction.state.log.num.partitions": 3,
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        # A node that was killed is given up after this, and its partitions get other leaders.
        "broker.session.timeout.ms": 6000,
        "group.initial.rebalance.delay.ms": 0,
        # A deleted topic's files go at once: tests make and delete many.
        "log.segment.delete.delay.ms": 0,
        "file.delete.delay.ms": 0,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def _addresses(ports: Sequence[int]) -> str:
    return ",".join(f"{HOST}:{port}" for port in ports)
