"""A place in a Kafka cluster for one test: topics under a prefix of its own."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import asdict

from confluent_kafka.admin import AdminClient

from headrace.log.kafka import Kafka, KafkaLog, KafkaLogReader
from headrace.model.clock import SystemClock

NUMBERS = itertools.count()
GONE_S_MAX = 20.0


class KafkaPlace:
    def __init__(self, cluster, **options):
        prefix = f"t{os.getpid()}-{next(NUMBERS)}."
        self.kafka = Kafka(cluster.bootstrap, prefix=prefix, **options)

    def open(self, **options):
        return KafkaLog(self.kafka, SystemClock(), **options)

    def reader(self):
        return KafkaLogReader(self.kafka, SystemClock())

    def wipe(self):
        """Delete the topics behind the log's back, and wait until no broker names them."""
        admin = self.admin()
        names = self._names(admin)
        for answer in (admin.delete_topics(names) if names else {}).values():
            answer.result()
        deadline = time.monotonic() + GONE_S_MAX
        seen_gone = 0
        while seen_gone < 6:
            seen_gone = 0 if self._names(admin) else seen_gone + 1
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def worker(self):
        return "headrace.testing.log_worker:open_kafka", json.dumps(asdict(self.kafka))

    def admin(self):
        return AdminClient({"bootstrap.servers": self.kafka.bootstrap})

    def _names(self, admin):
        return [n for n in admin.list_topics(timeout=10).topics if n.startswith(self.kafka.prefix)]
