"""Every pipeline on Kafka and a standalone Spark cluster, whose tasks run in other processes."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark and Kafka need Java", allow_module_level=True)

from combination import (
    PIPELINES,
    Deaths,
    cut_into,
    differences,
    filled,
    first_of,
    found_at,
    kafka_on,
    plan_of,
    sent_to,
    spark_on,
)
from inputs import size_bytes

from headrace.runner import spark_session

pytestmark = pytest.mark.timeout(900)  # a minute at most, but engines and machine are shared


@pytest.fixture(scope="module")
def session(spark_cluster):
    settings = {**spark_cluster.settings(), "spark.default.parallelism": "3"}
    made = spark_session.begin(spark_cluster.master, settings)
    yield made
    spark_session.end(made)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_cluster_gives_what_one_machine_gives(name, kafka, session, monkeypatch, tmp_path):
    deaths, sent = Deaths(monkeypatch), sent_to(name)
    plan = cut_into(plan_of(name, 3), size_bytes(sent), 2)
    with filled(tmp_path, plan, sent, kafka_on(kafka)) as site:
        deaths.left = ["commit.3:2"]
        site.run(spark_on(session))
        assert deaths.left == []
        found = found_at(site)
    assert differences(found, first_of(name)) == {}
