"""Reads an epoch's ranges of Kafka by Spark's own connector, where the session has one.

The connector's jars are Spark's matter: `spark.jars` names them. It reads in Java and hands whole
columns over to Python, so a task needs no client of Kafka's of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from headrace.model.runner import Range

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.log.kafka.client import Kafka

COLUMNS = ("topic", "partition", "offset", "timestamp", "key", "value", "headers")

_SAME = {
    "security.protocol",
    "client.id",
    "client.rack",
    "sasl.kerberos.service.name",
    "ssl.endpoint.identification.algorithm",
}
"""Properties that mean the same to Kafka's clients for C, which Headrace uses, and for Java."""
_IGNORED = {"log_level", "statistics.interval.ms"}
_LOGIN = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}


class Connector(NamedTuple):
    """How to read a Kafka cluster by a session's connector."""

    session: SparkSession
    options: Mapping[str, str]
    prefix: str
    """What stands before a topic's name in Kafka."""

    def read(self, ranges: Sequence[Range], parts: int) -> DataFrame:
        """Return all messages of some ranges, each partition at most once, as `COLUMNS`.

        The frame has about `parts` partitions, at least one a range. Each holds the messages of a
        part of one range, in the order of their offsets.
        """
        starts: dict[str, dict[str, int]] = {}
        ends: dict[str, dict[str, int]] = {}
        for part in ranges:
            name = self.prefix + part.topic
            starts.setdefault(name, {})[str(part.partition)] = part.start
            ends.setdefault(name, {})[str(part.partition)] = part.end
        assign = {name: [int(p) for p in of_topic] for name, of_topic in starts.items()}
        reader = self.session.read.format("kafka").options(**self.options)
        reader = reader.option("assign", _json(assign))
        reader = reader.option("startingOffsets", _json(starts)).option(
            "endingOffsets", _json(ends)
        )
        if parts > len(ranges):
            reader = reader.option("minPartitions", parts)
        return reader.load().select(*COLUMNS)


def find(session: SparkSession, kafka: Kafka) -> Connector | None:
    """Return the session's connector to a cluster; None if it has none that can be used.

    That is so without the jars, and with properties of which it is not known what they are in Java.
    """
    properties = java_properties(kafka.properties)
    if properties is None:
        return None
    options = {
        **{f"kafka.{name}": value for name, value in properties.items()},
        "kafka.bootstrap.servers": kafka.bootstrap,
        # As the log's own reader does; no group is ever joined, but clients are kept by its name.
        "kafka.isolation.level": "read_committed",
        "kafka.group.id": "headrace",
        "kafkaConsumer.pollTimeoutMs": str(round(kafka.timeout_s * 1000)),
        "fetchOffset.numRetries": "1",
        "includeHeaders": "true",
    }
    made = Connector(session, options, kafka.prefix)
    try:
        # Nothing is asked of Kafka before there is a job.
        made.read([Range("headrace", 0, 0, 1)], 1)
    except (PySparkException, Py4JError):
        return None
    return made


def java_properties(properties: Mapping[str, str]) -> dict[str, str] | None:
    """Return librdkafka's properties as Kafka's Java client has them; None if one is not known."""
    left = {name: value for name, value in properties.items() if name not in _IGNORED}
    found = {name: left.pop(name) for name in sorted(_SAME & left.keys())}
    mechanism = left.pop("sasl.mechanism", left.pop("sasl.mechanisms", ""))
    user, password = left.pop("sasl.username", ""), left.pop("sasl.password", "")
    if mechanism:
        if mechanism not in _LOGIN:
            return None
        named = f"username={_json(user)} password={_json(password)}"
        found["sasl.mechanism"] = mechanism
        found["sasl.jaas.config"] = f"{_LOGIN[mechanism]} required {named};"
    if "ssl.ca.location" in left:
        found["ssl.truststore.type"] = "PEM"
        found["ssl.truststore.location"] = left.pop("ssl.ca.location")
    return None if left else found


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
