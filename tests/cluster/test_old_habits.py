"""What people did before with Kafka, Spark and files goes on as it was, on a log in Kafka."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from types import SimpleNamespace

import httpx2
import polars as pl
import pyarrow.dataset as ds
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from run_example import Run, headrace, told, until

from headrace.app.cluster import trial

PIPELINE = """
from headrace import Pipeline, Record, field

pipeline = Pipeline("habits")

class GameEvent(Record):
    event_type: str
    host: str | None = field("Host", default=None)

events = pipeline.topic("events", GameEvent, partitions=3)
pipeline.route("/purchase_a_sword", events, {"event_type": "purchase_sword"}, reply="Bought!")
pipeline.route("/join_guild", events, {"event_type": "join_guild"}, reply="Joined!")
pipeline.table(
    "purchases", "SELECT event_id, host FROM events WHERE event_type = 'purchase_sword'"
)
pipeline.view(
    "by_type",
    "SELECT event_type, count(*) AS n FROM events GROUP BY event_type",
    publish_to="events_query",
)
"""
SENT = {"/purchase_a_sword": 5, "/join_guild": 3}
OLD = [{"event_type": "purchase_sword", "Host": f"old{n}.example.com"} for n in range(4)]
OF_TYPE = {"purchase_sword": 9, "join_guild": 3}
"""What was sent by door and by the old producer."""
DEADLINE_S = 90.0
SPARK = """
import json, sys
from pyspark.sql import SparkSession

bootstrap, topic, table = sys.argv[1:]
spark = SparkSession.builder.appName("habit").getOrCreate()
counts = (
    spark.read.format("kafka")
    .option("kafka.bootstrap.servers", bootstrap)
    .option("subscribe", topic)
    .option("startingOffsets", "earliest")
    .option("endingOffsets", "latest")
    .load()
    .selectExpr("get_json_object(CAST(value AS string), '$.event_type') AS event_type")
    .groupBy("event_type")
    .count()
)
told = {
    "master": spark.sparkContext.master,
    "topic": {row["event_type"]: row["count"] for row in counts.collect()},
    "delta": spark.read.format("delta").load(table).count(),
    "parquet": spark.read.parquet(table).count(),
}
spark.stop()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def habits(kafka_of_file, tmp_path_factory):
    """A pipeline on Kafka that has taken events by HTTP, and plain ones from an old producer."""
    folder = tmp_path_factory.mktemp("habits")
    prefix = f"habits-{uuid.uuid4().hex}."
    bootstrap = kafka_of_file.bootstrap
    (folder / "pipeline.py").write_text(PIPELINE)
    config = folder / "headrace.toml"
    config.write_text(f'[kafka]\nbootstrap = "{bootstrap}"\nprefix = "{prefix}"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CONFIG", str(config))
        with Run(folder / "pipeline.py", folder / "data") as running:
            for path, n in SENT.items():
                for _ in range(n):
                    httpx2.get(f"{running.url}{path}", timeout=30).raise_for_status()
            produce_as_before(bootstrap, f"{prefix}events")
            until(lambda: counted(running.url), lambda counts: counts == OF_TYPE)
            yield SimpleNamespace(
                bootstrap=bootstrap, prefix=prefix, data=folder / "data", url=running.url
            )


def produce_as_before(bootstrap, topic):
    producer = Producer({"bootstrap.servers": bootstrap})
    for event in OLD:
        producer.produce(topic, json.dumps(event).encode())
    assert producer.flush(DEADLINE_S) == 0


def counted(url):
    answer = httpx2.get(f"{url}/v1/views/by_type", timeout=30)
    rows = answer.json()["rows"] if answer.is_success else []
    return {row["event_type"]: row["n"] for row in rows}


def kinds_of(lines):
    return Counter(json.loads(line)["event_type"] for line in lines)


def consumed(bootstrap, topic):
    """Return all values of a topic, read by a client that knows nothing of Headrace."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "old", "enable.auto.commit": False}
    )
    try:
        found = consumer.list_topics(topic, DEADLINE_S).topics[topic].partitions
        values = []
        for partition in found:
            place = TopicPartition(topic, partition)
            start, end = consumer.get_watermark_offsets(place, DEADLINE_S)
            consumer.assign([TopicPartition(topic, partition, start)])
            while consumer.position([place])[0].offset < end:
                for message in consumer.consume(end - start, 1.0):
                    assert message.error() is None, message.error()
                    values.append(message.value())
        return values
    finally:
        consumer.close()


def table_path(data, name):
    (path,) = [t["path"] for t in told("tables", "--data", data) if t["name"] == f"tables/{name}"]
    return path


def test_a_plain_consumer_reads_the_events(habits):
    values = consumed(habits.bootstrap, f"{habits.prefix}events")
    assert kinds_of(values) == OF_TYPE
    hosts = {json.loads(value)["Host"] for value in values}
    assert {event["Host"] for event in OLD} < hosts


def test_kcat_prints_the_events(habits):
    kcat = shutil.which("kcat") or shutil.which("kafkacat")
    if kcat is None:
        pytest.skip("kcat is not installed")
    topic = f"{habits.prefix}events"
    command = [kcat, "-C", "-b", habits.bootstrap, "-t", topic, "-o", "beginning", "-e", "-q"]
    printed = subprocess.check_output(command, text=True, timeout=DEADLINE_S)
    assert kinds_of(printed.splitlines()) == OF_TYPE


def test_plain_json_of_an_old_producer_is_in_the_tables(habits):
    said = headrace("sql", "--data", habits.data, "--json", "SELECT * FROM purchases")
    rows = json.loads(said)
    hosts = Counter(row["host"] for row in rows)
    assert all(hosts[event["Host"]] == 1 for event in OLD)
    assert len({row["event_id"] for row in rows}) == len(rows) == OF_TYPE["purchase_sword"]


def test_counts_are_in_the_query_topic(habits):
    def newest():
        """Return the last count of each type, as whoever follows the topic has it."""
        told = map(json.loads, consumed(habits.bootstrap, f"{habits.prefix}events_query"))
        return {row["event_type"]: row["n"] for row in told}

    until(newest, lambda counts: counts == OF_TYPE)


def test_tables_are_read_by_their_path_without_headrace(habits):
    path = table_path(habits.data, "purchases")
    assert pl.read_delta(path).height == OF_TYPE["purchase_sword"]
    files = ds.dataset(path, exclude_invalid_files=True)
    assert files.to_table().num_rows == OF_TYPE["purchase_sword"]


@pytest.mark.slow
def test_a_spark_user_reads_topic_and_tables(habits, spark_folder, tmp_path):
    script = tmp_path / "habit.py"
    script.write_text(SPARK)
    path = table_path(habits.data, "purchases")
    command = [sys.executable, script, habits.bootstrap, f"{habits.prefix}events", path]
    conf = trial.spark_conf(spark_folder)
    ended = subprocess.run(
        command, env={**os.environ, "SPARK_CONF_DIR": str(conf)}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found == {
        "master": trial.running(spark_folder).spark.master,
        "topic": OF_TYPE,
        "delta": OF_TYPE["purchase_sword"],
        "parquet": OF_TYPE["purchase_sword"],
    }
