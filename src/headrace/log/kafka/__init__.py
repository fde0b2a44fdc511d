"""The log on Kafka: plain messages in plain topics, and keyed state in a topic of its own."""

from headrace.log.kafka.client import Kafka, nodes_of
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.reader import KafkaLogReader
from headrace.log.kafka.retention import AtRisk, RetentionGuard

__all__ = ["AtRisk", "Kafka", "KafkaLog", "KafkaLogReader", "RetentionGuard", "nodes_of"]
