"""`headrace doctor` on real clusters, as they should be and with things broken on purpose."""

from __future__ import annotations

from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.app.cli import doctor_cluster
from headrace.app.cli.doctor_cluster import examine_deployment
from headrace.log.kafka import Kafka, KafkaLog
from headrace.log.kafka.survey import Survey, TopicFacts
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, KafkaSettings, SparkSettings, TableSettings
from headrace.model.pipeline_options import Options
from headrace.tables.objects import ObjectStorage

PIPELINE = """
from headrace import Pipeline, Record

class Event(Record):
    n: int

pipeline = Pipeline("doctored")
for name in ("good", "later", "loose"):
    pipeline.topic(name, Event)
"""
PREFIX = "doctored."
FACTS = TopicFacts(
    partitions=3, replication=3, insync=3, insync_min=2, retention_s=604_800.0,
    retention_bytes=None, is_compacted=False, unclean_election=False,
)  # fmt: skip


@pytest.fixture
def prefixed(kafka):
    """A cluster that keeps one of our topics as it should, and another as nobody should."""
    with closing(KafkaLog(Kafka(kafka.bootstrap, prefix=PREFIX), SystemClock())) as log:
        log.create("good", 2)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    config = {"min.insync.replicas": "1", "retention.ms": "60000"}
    (made,) = admin.create_topics([NewTopic(f"{PREFIX}loose", 1, 1, config=config)]).values()
    made.result()
    yield kafka
    names = [n for n in admin.list_topics(timeout=20).topics if n.startswith(PREFIX)]
    for answer in admin.delete_topics(names).values():
        answer.result()


def test_doctor_looks_at_kafka(headrace, tmp_path, prefixed):
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    config = f'[kafka]\nbootstrap = "{prefixed.bootstrap}"\nprefix = "{PREFIX}"\n'
    (tmp_path / "headrace.toml").write_text(config)
    ended = headrace("doctor", "pipeline.py", "--json")
    findings = {f["what"]: f for f in ended.json()}
    assert ended.status == 2
    loose = findings.pop("topic loose")
    assert not loose["fine"]
    for word in ("1 of 3 copies", "min.insync.replicas is 1", "kept for 1 min"):
        assert word in loose["found"]
    for word in ("reassign", "min.insync.replicas=2", "retention.ms to 86400000"):
        assert word in loose["hint"]
    assert findings["Kafka"]["found"].startswith("3 brokers at")
    assert "3 copies, 2 before an answer" in findings["topic good"]["found"]
    assert "not there yet" in findings["topic later"]["found"]
    assert "1 partitions" in findings["topic of the state"]["found"]
    assert findings["automatic creation of topics"]["found"] == "off"
    assert findings["brokers' clocks"]["found"] == "as here"
    about = ("Kafka", "topic", "auto", "brok")
    assert [f for what, f in findings.items() if what.startswith(about) and not f["fine"]] == []
    names = AdminClient({"bootstrap.servers": prefixed.bootstrap}).list_topics(timeout=20).topics
    assert [name for name in names if "headrace-doctor" in name] == []


def test_doctor_says_that_no_broker_answers(headrace, monkeypatch):
    monkeypatch.setattr(Kafka, "timeout_s", 1.0, raising=False)
    ended = headrace("doctor", "--kafka", "127.0.0.1:1", "--json")
    (found,) = [f for f in ended.json() if f["what"] == "Kafka"]
    assert not found["fine"]
    assert "brokers" in found["hint"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, None),
        ({"replication": 2}, "2 of 3 copies"),
        ({"insync": 2}, "2 of 3 copies are up to date"),
        ({"insync_min": 1}, "min.insync.replicas is 1"),
        ({"insync_min": 3}, "min.insync.replicas is 3 of 3"),
        ({"unclean_election": True}, "unclean"),
        ({"is_compacted": True}, "compacted"),
        ({"retention_s": 3600.0}, "kept for 1 h"),
        ({"retention_s": None}, None),
    ],
)
def test_what_is_wrong_with_a_topic_is_said(changed, word):
    found = judged(FACTS, changed, is_state=False)
    assert found.fine is (word is None)
    assert word is None or (word in found.found and found.hint)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"partitions": 1, "retention_s": None}, None),
        ({"partitions": 1}, "not kept whole"),
        ({"partitions": 1, "retention_s": None, "is_compacted": True}, "not kept whole"),
        ({"partitions": 1, "retention_s": None, "retention_bytes": 9}, "not kept whole"),
        ({"retention_s": None}, "3 partitions"),
    ],
)
def test_what_is_wrong_with_the_state_is_said(changed, word):
    found = judged(FACTS, changed, is_state=True)
    assert found.fine is (word is None)
    assert word is None or (word in found.found and found.hint)


def judged(facts, changed, *, is_state):
    settings = KafkaSettings("here:9092")
    values = {name: getattr(facts, name) for name in TopicFacts.__struct_fields__}
    facts = TopicFacts(**{**values, **changed})
    return doctor_cluster._topic("t", facts, settings, Options(), is_state=is_state)


def test_creation_by_anyone_is_to_be_mended():
    found = {on: doctor_cluster._creation(Survey([1], on, {})) for on in (True, False, None)}
    assert {on: f.fine for on, f in found.items()} == {True: False, False: True, None: True}


def test_doctor_races_for_a_name_of_the_tables(s3, s3_environment, url, monkeypatch):
    deployment = Deployment(tables=TableSettings(url))
    (found,) = examine_deployment(deployment, None, SystemClock())
    assert (found.fine, "one wins" in found.found) == (True, True)
    monkeypatch.setattr(
        ObjectStorage, "put_new", lambda self, path, data, **_: self.put(path, data)
    )
    (found,) = examine_deployment(deployment, None, SystemClock())
    assert (found.fine, "2 won" in found.found) == (False, True)


def test_doctor_asks_workers_for_their_versions(monkeypatch):
    pytest.importorskip("pyspark")
    deployment = Deployment(spark=SparkSettings("local[1]"))
    driver, worker = examine_deployment(deployment, None, SystemClock())
    assert driver.fine
    assert "on Java" in driver.found
    assert worker.fine
    assert "duckdb" in worker.found


def test_workers_that_differ_are_named():
    _, here = doctor_cluster._worker()(0)
    (found,) = doctor_cluster._workers({"host": here | {"duckdb": "missing"}})
    assert not found.fine
    assert found.what == "Spark worker host"
    assert found.found.startswith("duckdb missing, here ")
