"""A trial cluster's Kafka: its brokers' settings, and when they are there.

Three Kafka nodes, each broker and controller, keep every record on all three and answer once two
have it. They listen on 127.0.0.1 alone, on ports that were free when the folder was made. Each has
a plain listener and one with passwords (`SASL_PLAINTEXT`, mechanism PLAIN), so that both can be
tried.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from headrace.app.cluster.jars import jars
from headrace.app.cluster.keeper import Program
from headrace.app.cluster.ports import HOST, addresses, free_ports
from headrace.log.kafka import Kafka, nodes_of
from headrace.model.clock import Clock
from headrace.model.errors import Unavailable

NODES = 3
READY_S_MAX = 180.0
ANSWER_S_MAX = 5.0
POLL_S = 0.25
USER = "trial"
# A trial lives for minutes: what the second compiler takes to begin with, it never gives back.
_HEAP = ("-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_MADE = "made"


class Brokers(msgspec.Struct, frozen=True):
    """What the folder of a trial cluster says of its brokers."""

    ports: list[int]
    """Of the plain listeners, one a node."""
    controller_ports: list[int]
    password_ports: list[int]
    password: str
    """Of the user `USER`, on the listeners with passwords."""

    @property
    def bootstrap(self) -> str:
        """Addresses of the plain listeners, as Kafka's clients want them."""
        return addresses(self.ports)

    @property
    def password_bootstrap(self) -> str:
        """Addresses of the listeners with passwords."""
        return addresses(self.password_ports)


def chosen(clock: Clock) -> Brokers:
    """Return brokers on ports that are free now, with a new password."""
    ports = free_ports(3 * NODES)
    return Brokers(
        ports[:NODES], ports[NODES : 2 * NODES], ports[2 * NODES :], clock.secret(16).hex()
    )


def prepare(folder: Path, brokers: Brokers, clock: Clock) -> list[Program]:
    """Write what the nodes read, into `folder`, and return them; nodes not made yet are made.

    `Invalid` if Java or Maven is missing, `Unavailable` if their folders cannot be made.
    """
    libraries = jars("kafka")
    programs = []
    for number in range(NODES):
        name = f"node-{number + 1}"
        properties = folder / f"{name}.properties"
        properties.write_text(_properties(folder, brokers, number), encoding="utf-8")
        command = ["java", *_HEAP, "-cp", f"{libraries}/*", "kafka.Kafka", str(properties)]
        programs.append(Program(name, command, str(folder / f"{name}.out")))
    if not (folder / _MADE).exists():
        _format(folder, libraries, clock)
        (folder / _MADE).touch()
    return programs


def wait_until_ready(brokers: Brokers, clock: Clock, check: Callable[[], None]) -> None:
    """Return when all nodes have joined under a controller; `Unavailable` if they do not.

    `check` is called again and again meanwhile, and raises if waiting is in vain.
    """
    deadline_s = clock.monotonic_s() + READY_S_MAX
    kafka = Kafka(brokers.bootstrap, timeout_s=ANSWER_S_MAX)
    while True:
        there = 0
        with suppress(Unavailable):
            there = len(nodes_of(kafka, clock))
        # A node may join and then not come by the port that it is to listen on.
        check()
        if there >= NODES:
            return
        if clock.monotonic_s() > deadline_s:
            raise Unavailable(
                f"The trial cluster's {NODES} nodes did not come up in {READY_S_MAX:.0f} s",
                hint="each node's .out file in the cluster's folder tells why",
                code="cluster_not_ready",
            )
        clock.sleep(POLL_S)


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


def _properties(folder: Path, brokers: Brokers, number: int) -> str:
    voters = ",".join(f"{n + 1}@{HOST}:{p}" for n, p in enumerate(brokers.controller_ports))
    public = (
        f"PLAINTEXT://{HOST}:{brokers.ports[number]},"
        f"SASL_PLAINTEXT://{HOST}:{brokers.password_ports[number]}"
    )
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'user_{USER}="{brokers.password}";'
    )
    lines = {
        "node.id": number + 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{public},CONTROLLER://{HOST}:{brokers.controller_ports[number]}",
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
        # A deleted topic's files go soon: tests make and delete many. This is also how often an
        # idle broker looks for them; with 0, a thousand times a second.
        "log.segment.delete.delay.ms": 1000,
        # It is taken at the start, and by default half of the heap that a trial's node has.
        "log.cleaner.dedupe.buffer.size": 16 << 20,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())
