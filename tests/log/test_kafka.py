"""The log on a real cluster of three brokers: what every log keeps, and what is Kafka's own."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import Future
from contextlib import closing

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Producer, TopicPartition
from confluent_kafka.admin import ListOffsetsResultInfo

from headrace.app.cluster.brokers import USER
from headrace.log.kafka import Kafka, KafkaLog, tail
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.errors import Corrupt, Fenced, Invalid, Unavailable
from headrace.model.failpoint import FAILPOINTS
from headrace.testing.log_crashes import run_worker, work_until_killed
from headrace.testing.log_place import expect_error, read_table, read_values, run_threads, values
from headrace.testing.log_suite import GUARANTEES
from headrace.testing.log_worker import COUNTED, CURSOR, PLAIN

POINTS = [name for name in FAILPOINTS if name.startswith("act.")]
PUTS = 40


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_kafka_keeps(guarantee, kafka_place):
    guarantee(kafka_place)


@pytest.fixture
def log(kafka_place):
    with closing(kafka_place.open()) as log:
        log.create("events", 1)
        yield log


def produce(place, topic, *sent, **options):
    """Write messages as a program that knows nothing of us."""
    producer = Producer({"bootstrap.servers": place.kafka.bootstrap, **options})
    for value in sent:
        producer.produce(place.kafka.prefix + topic, value, headers={"a": "b"})
    assert producer.flush(20) == 0


def test_other_programs_read_plain_messages(kafka_place, log):
    batch = Batch()
    batch.add(b'{"n":1}', received_at=7, id=bytes(16), key=b"k", headers=b'{"a":"1"}', mark=3)
    log.append("events", batch)
    consumer = Consumer({"bootstrap.servers": kafka_place.kafka.bootstrap, "group.id": "other"})
    with closing(consumer):
        consumer.assign([TopicPartition(kafka_place.kafka.prefix + "events", 0, 0)])
        (message,) = consumer.consume(1, 20)
    assert (message.key(), message.value()) == (b"k", b'{"n":1}')
    assert dict(message.headers()) == {
        "headrace-id": b"00000000-0000-0000-0000-000000000000",
        "headrace-received-at": b"7",
        "headrace-mark": b"3",
        "a": b"1",
    }


def test_messages_of_other_programs_are_records(kafka_place, log):
    produce(kafka_place, "events", b"1", b"2")
    log.append("events", values(b"3"))
    table = read_table(log, "events", 0, 0)
    assert table == read_table(log, "events", 0, 0)
    assert table.column("value").to_pylist() == [b"1", b"2", b"3"]
    assert table.column("headers").to_pylist() == [b'{"a":"b"}', b'{"a":"b"}', b""]
    assert len(set(table.column("id").to_pylist())) == 3


def test_offsets_that_are_missing_are_passed_over(kafka_place, log):
    """Transactions of others leave marks at offsets of their own, also at the range's end."""
    name = kafka_place.kafka.prefix + "events"
    producer = Producer(
        {"bootstrap.servers": kafka_place.kafka.bootstrap, "transactional.id": name}
    )
    producer.init_transactions(30)
    for number in range(3):
        producer.begin_transaction()
        producer.produce(name, b"%d" % number)
        producer.produce(name, b"-%d" % number)
        producer.flush()
        (producer.abort_transaction if number == 1 else producer.commit_transaction)(30)
    # The broker writes the last mark after it has answered; the offsets below count on it.
    while log.ends("events") != [9]:
        SystemClock().sleep(0.01)
    log.append("events", values(b"last"))
    assert log.ends("events") == [10]
    assert read_values(log, "events") == [b"0", b"-0", b"2", b"-2", b"last"]
    for start, end in itertools.combinations(range(11), 2):
        found = [b for batch in log.read("events", 0, start, end) for b in batch["offset"]]
        assert [o.as_py() for o in found] == [o for o in (0, 1, 6, 7, 9) if start <= o < end]


def test_what_kafka_deleted_is_trimmed_not_empty(kafka_place, log):
    log.append("events", values(b"0", b"1", b"2"))
    name = kafka_place.kafka.prefix + "events"
    admin = kafka_place.admin()
    (answer,) = admin.delete_records([TopicPartition(name, 0, 2)]).values()
    answer.result()
    assert log.starts("events") == [2]
    assert expect_error(Invalid, lambda: read_values(log, "events")).code == "offset_trimmed"
    assert read_values(log, "events", start=2) == [b"2"]
    log.trim("events", [3])
    assert read_values(log, "events", start=2) == [b"2"]


def test_a_flipped_bit_on_a_brokers_disk_is_found(kafka_folder, kafka_place, log):
    log.append("events", values(b"before"))
    log.append("events", values(b"needle"))
    name = kafka_place.kafka.prefix + "events"
    leader = kafka_place.admin().list_topics(name, timeout=20).topics[name].partitions[0].leader
    (segment,) = (kafka_folder / f"node-{leader}" / f"{name}-0").glob("*.log")
    with segment.open("r+b") as file:
        file.seek(file.read().index(b"needle"))
        file.write(b"noodle")
    with closing(kafka_place.reader()) as reader:
        assert expect_error(Corrupt, lambda: read_values(reader, "events")).code == "damaged_batch"


def test_a_topic_can_change_under_another_process(kafka_place, log):
    """Deleted and made again elsewhere, it is written and read by its new partitions."""
    log.append("events", values(b"old"))
    assert read_values(log, "events") == [b"old"]
    with closing(kafka_place.open()) as other:
        other.delete("events")
        made = other.create("events", 3)
        assert log.describe() == {"events": made}
        log._infos.clear()  # as after INFO_S_MAX
        for _ in range(3):
            log.append("events", values(b"new"))
        for each in (log, other):
            assert [read_values(each, "events", p) for p in range(3)] == [[b"new"]] * 3


def test_a_topic_that_kafka_allows_no_name_is_invalid(log):
    for name in ("no/slash", "ü", "", "x" * 250):
        error = expect_error(Invalid, lambda name=name: log.create(name, 1))
        assert error.code == "bad_topic_name"


# State, from many processes.


def test_of_two_writers_one_put_wins(kafka_place):
    """Each writer its own connections, as two processes have."""
    wins = []

    def race(log):
        for _ in range(PUTS):
            entry = log.get("counter")
            revision, count = (entry.revision, int(entry.value)) if entry else (0, 0)
            try:
                log.put_if("counter", revision, b"%d" % (count + 1))
                wins.append(count + 1)
            except Fenced:
                continue

    with closing(kafka_place.open()) as one, closing(kafka_place.open()) as two:
        run_threads([lambda: race(one), lambda: race(two)])
        assert sorted(wins) == list(range(1, len(wins) + 1))
        assert len(wins) >= PUTS
        assert int(one.get("counter").value) == int(two.get("counter").value) == len(wins)


def test_of_two_owners_one_page_counts(kafka_place):
    """Both append records under the same expectation: those of the loser are read by nobody."""
    with closing(kafka_place.open()) as one, closing(kafka_place.open()) as two:
        one.create("events", 1)
        one.put_if("cursor", 0, b"0")
        pages = []

        def own(log, name):
            for _ in range(PUTS // 2):
                cursor = log.get("cursor")
                page = values(*[b"%s %s %d" % (name, cursor.value, n) for n in range(3)])
                state = {"cursor": b"%d" % (int(cursor.value) + 1)}
                try:
                    log.append("events", page, state, {"cursor": cursor.revision})
                    pages.append(page.values)
                except Fenced:
                    continue

        run_threads([lambda: own(one, b"one"), lambda: own(two, b"two")])
        found = read_values(two, "events")
        assert sorted(found) == sorted(itertools.chain(*pages))
        assert int(one.get("cursor").value) == len(pages) >= PUTS // 2
        assert one.ends("events")[0] >= len(found)


def test_an_act_left_open_is_given_up_by_who_reads_it(kafka_place, log, monkeypatch):
    monkeypatch.setattr(tail, "ACT_S_MAX", 0.5)
    info = log.describe()["events"]
    log._state.begin("left", info)
    log._send("events", values(b"never"), "left")
    log.append("events", values(b"after"))
    with closing(kafka_place.reader()) as reader:
        assert read_values(reader, "events") == [b"after"]
    expect_error(Unavailable, lambda: log._state.put({"k": b"1"}, {}, "left"))
    assert log.get("k") is None
    assert read_values(log, "events") == [b"after"]


def test_an_act_that_a_broker_does_not_know_of_yet_is_waited_for(kafka_place, log, monkeypatch):
    """One that was stopped goes on, for a moment, as if nothing had been appended since."""
    named = log._state.begin("left", log.describe()["events"])
    log._send("events", values(b"never"), named)
    log._state.abort("left")
    with closing(kafka_place.reader()) as reader:
        bound, asked = reader._state._bound, []

        def stale(*, latest):
            asked.append(latest)
            return 0 if len(asked) < 6 else bound(latest=latest)

        monkeypatch.setattr(reader._state, "_bound", stale)
        assert read_values(reader, "events") == []
        assert len(asked) >= 6


def test_an_act_of_nobody_is_waited_for_in_vain(kafka_place, log, monkeypatch):
    monkeypatch.setattr(tail, "ACT_S_MAX", 0.2)
    for name in ("unknown", "unknown@999", "unknown@", "@", "@x"):
        log._send("events", values(name.encode()), name)
    assert len(read_values(log, "events")) == 5


def test_a_read_waits_for_an_act_under_way(log, kafka_place):
    log._state.begin("open", log.describe()["events"])
    log._send("events", values(b"page"), "open")
    settling = threading.Timer(0.5, lambda: log._state.put({"k": b"1"}, {}, "open"))
    settling.start()
    with closing(kafka_place.reader()) as reader:
        assert read_values(reader, "events") == [b"page"]
        assert reader.get("k") is not None
    settling.join()


def test_the_states_topic_does_not_grow_for_ever(kafka_place, monkeypatch):
    monkeypatch.setattr(tail, "SNAPSHOT_EVERY", 10)
    with closing(kafka_place.open()) as log, closing(kafka_place.reader()) as behind:
        assert behind.scan("") == []
        for number in range(45):
            log.put_if(f"key/{number:02}", 0, b"%d" % number)
        expected = log.scan("")
        assert len(expected) == 45
        state = kafka_place.kafka.state_topic
        assert log._admin.bound(state, latest=True) - log._admin.bound(state, latest=False) < 30
        assert behind.scan("") == expected
    with closing(kafka_place.open()) as log:
        assert log.scan("") == expected


def once_after(monkeypatch, owner, name, act, is_it=lambda *_args, **_options: True):
    """Have something happen right after the first call of a method that `is_it` is true of."""
    original = getattr(owner, name)
    left = [act]

    def wrapped(*args, **options):
        answer = original(*args, **options)
        if left and is_it(*args, **options):
            left.pop()()
        return answer

    monkeypatch.setattr(owner, name, wrapped)


def put_many(log, count):
    for _ in range(count):
        entry = log.get("counter")
        log.put_if("counter", entry.revision if entry else 0, b"x")


@pytest.mark.parametrize("latest", [True, False], ids=["end", "start"])
def test_what_is_read_while_another_deletes_behind_its_snapshot_is_whole(
    latest, kafka_place, monkeypatch
):
    """Whoever has just been told the topic's end, or its start, finds neither there any more."""
    monkeypatch.setattr(tail, "SNAPSHOT_EVERY", 5)
    with closing(kafka_place.open()) as log, closing(kafka_place.reader()) as late:
        log.put_if("first", 0, b"1")
        state = kafka_place.kafka.state_topic
        once_after(
            monkeypatch, late._admin, "bound", lambda: put_many(log, 20),
            lambda _name, **options: options == {"latest": latest},
        )  # fmt: skip
        assert late.scan("") == log.scan("")
        assert log._admin.bound(state, latest=False) > 5


def test_a_put_is_judged_though_another_writes_a_snapshot_before_its_author_reads(
    kafka_place, monkeypatch
):
    monkeypatch.setattr(tail, "SNAPSHOT_EVERY", 5)
    with closing(kafka_place.open()) as one, closing(kafka_place.open()) as two:

        def meanwhile(puts):
            put_many(two, puts)
            # The client may have fetched ahead; what it has not is what this is about.
            one._state._fetcher.rest()

        put_many(two, 8)
        once_after(monkeypatch, one._state, "_append", lambda: meanwhile(4))
        assert one.put_if("mine", 0, b"1") == two.get("mine")
        once_after(monkeypatch, one._state, "_append", lambda: meanwhile(20))
        # By now nobody can tell any more; its author looks, and finds it.
        error = expect_error(Unavailable, lambda: one.put_if("other", 0, b"1"))
        assert error.code == "outcome_unknown"
        assert one.get("other") == two.get("other")


def test_no_number_from_kafka_is_no_offset(kafka_place, log, monkeypatch):
    """While leaders change, the client can answer with what stands for none."""
    log.append("events", values(b"1"))
    client, asked = log._admin._client, []
    original = client.list_offsets

    def listed(places, **options):
        answers = original(places, **options)
        asked.append(places)
        if len(asked) > 1:
            return answers
        nothing = Future()
        nothing.set_result(ListOffsetsResultInfo(OFFSET_INVALID, -1, -1))
        return dict.fromkeys(answers, nothing)

    monkeypatch.setattr(client, "list_offsets", listed)
    assert log.ends("events") == [1]
    assert len(asked) == 2


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_within_an_act_leaves_all_of_it_or_nothing(point, kafka_place):
    acknowledged = work_until_killed(kafka_place, f"{point}:4=kill")
    check_counted(kafka_place, acknowledged)
    acknowledged = run_worker(kafka_place)
    check_counted(kafka_place, acknowledged)


def check_counted(place, acknowledged):
    """Every acknowledged record once, and the cursor where the records are."""
    with closing(place.open()) as log:
        found = read_values(log, COUNTED)
        assert found == [b"%d" % number for number in range(len(found))]
        assert int(log.get(CURSOR).value) == len(found) >= acknowledged[COUNTED]
        plain = read_values(log, PLAIN)
        assert plain == [b"%d" % number for number in range(len(plain))]
        assert len(plain) >= acknowledged[PLAIN]


# Who may come in.


def test_security_settings_reach_kafka(kafka, kafka_place):
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    known = {**login, "sasl.username": USER, "sasl.password": kafka.password}
    prefix = kafka_place.kafka.prefix
    settings = Kafka(kafka.password_bootstrap, known, prefix)
    with closing(KafkaLog(settings, SystemClock())) as log:
        log.create("events", 1)
        log.append("events", values(b"1"), {"k": b"1"})
        assert read_values(log, "events") == [b"1"]
    unknown = {**known, "sasl.password": json.dumps(kafka.password)}
    settings = Kafka(kafka.password_bootstrap, unknown, prefix, timeout_s=3)
    error = expect_error(Invalid, lambda: KafkaLog(settings, SystemClock()))
    assert error.code == "kafka_denied"
    assert "security properties" in error.hint
    assert kafka.password not in str(error)
