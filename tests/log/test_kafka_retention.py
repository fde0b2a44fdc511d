"""What Kafka is about to delete before it was committed is found, and nothing else is."""

from __future__ import annotations

from contextlib import closing

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from headrace.log.kafka import AtRisk, RetentionGuard
from headrace.model.clock import SystemClock

HOUR_S = 3600
ANSWERS = 8


@pytest.fixture
def log(kafka_place):
    with closing(kafka_place.open()) as log:
        log.create("events", 2)
        yield log


@pytest.fixture
def guard(kafka_place):
    with closing(RetentionGuard(kafka_place.kafka, SystemClock())) as guard:
        yield guard


def keep(place, **settings):
    """Set how the topic is kept, as its administrator does."""
    entries = [
        ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    name = place.kafka.prefix + "events"
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
    admin = place.admin()
    (answer,) = admin.incremental_alter_configs([resource]).values()
    answer.result()
    # Each answer may be another broker's, and not all of them know it at once.
    running = 0
    while running < ANSWERS:
        (answer,) = admin.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, name)]
        ).values()
        told = {entry.name: entry.value for entry in answer.result().values()}
        is_so = all(told[entry.name] == entry.value for entry in entries)
        running = running + 1 if is_so else 0
        SystemClock().sleep(0.02)


def produce(place, count, *, age_s=0, value=b"v", partition=0):
    producer = Producer({"bootstrap.servers": place.kafka.bootstrap})
    at_ms = SystemClock().now_us() // 1000 - age_s * 1000
    for _ in range(count):
        producer.produce(place.kafka.prefix + "events", value, partition=partition, timestamp=at_ms)
    assert producer.flush(20) == 0


def test_a_record_that_grows_old_uncommitted_is_at_risk(kafka_place, log, guard):
    keep(kafka_place, retention_ms=HOUR_S * 1000, retention_bytes=-1)
    produce(kafka_place, 1, age_s=HOUR_S * 5 // 6)
    produce(kafka_place, 1, age_s=HOUR_S // 2)
    produce(kafka_place, 1, age_s=HOUR_S // 2, partition=1)
    (found,) = guard.at_risk({"events/0": 0, "events/1": 0})
    assert (found.topic, found.partition, found.needed) == ("events", 0, 0)
    assert (found.gone, found.left_bytes) == (0, None)
    assert HOUR_S / 6 - 120 < found.left_s <= HOUR_S / 6
    # The next one is younger; behind the last there is nothing to lose.
    assert guard.at_risk({"events/0": 1, "events/1": 0}) == []
    assert guard.at_risk({"events/0": 2, "events/1": 1}) == []
    assert len(guard.at_risk({"events/0": 1, "events/1": 0}, share=0.6)) == 2
    keep(kafka_place, retention_ms=-1)
    assert guard.at_risk({"events/0": 0, "events/1": 0}) == []


def test_a_record_with_too_much_behind_it_is_at_risk(kafka_place, log, guard):
    keep(kafka_place, retention_ms=-1, retention_bytes=100_000)
    produce(kafka_place, 85, value=b"x" * 1000)
    (found,) = guard.at_risk({"events/0": 0})
    assert (found.needed, found.gone, found.left_s) == (0, 0, None)
    assert 0 < found.left_bytes < 20_000
    assert guard.at_risk({"events/0": 40}) == []
    keep(kafka_place, cleanup_policy="compact")
    assert guard.at_risk({"events/0": 0}) == []


def test_what_is_deleted_already_is_told(kafka_place, log, guard):
    produce(kafka_place, 5)
    place = TopicPartition(kafka_place.kafka.prefix + "events", 0, 3)
    admin = kafka_place.admin()
    (answer,) = admin.delete_records([place]).values()
    answer.result()
    assert guard.at_risk({"events/0": 1}) == [AtRisk("events", 0, 1, 2, None, None)]
    assert guard.at_risk({"events/0": 3, "events/9": 0, "gone/0": 0}) == []
