"""Which log, storage and runner a run gets: the file, what goes over it, what is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.app.deployment_file import Wanted, choose, keep, kept, read
from headrace.app.site import KafkaSite, expanded, kafka_of, open_site, site_of
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, KafkaSettings, SparkSettings, TableSettings
from headrace.model.errors import Invalid
from headrace.model.layout import Layout

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout.at(tmp_path / "data")
    layout.root.mkdir()
    return layout


def refused(act):
    with pytest.raises(Invalid) as found:
        act()
    assert found.value.hint
    return found.value


def test_the_file_of_the_page_is_understood(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "headrace.toml"
    path.write_text(text, encoding="utf-8")
    found = read(path)
    assert found.kafka.prefix == "shop."
    assert found.tables.url == "s3://bucket/shop"
    assert found.spark.settings == {"spark.executor.memory": "4g"}
    assert "${KAFKA_PASSWORD}" in found.kafka.properties.values()


@pytest.mark.parametrize(
    "text",
    [
        "[kafka]",
        "[kafka]\nbootstrap = 3",
        "[kafka]\nbootstrap = 'a:1'\nreplicas = 3",
        "[kafke]\nbootstrap = 'a:1'",
        "kafka = 'a:1'",
        "[kafka",
    ],
)
def test_what_is_not_understood_is_refused(text, layout):
    Path("headrace.toml").write_text(text)
    with pytest.raises(Invalid) as found:
        choose(Wanted(), layout)
    assert found.value.code == "bad_deployment"


@pytest.mark.parametrize("url", ["tables", "gs://bucket/x", "s4://bucket"])
def test_tables_are_in_a_place_that_there_is(url, layout):
    assert refused(lambda: choose(Wanted(tables=url), layout)).code == "bad_deployment"


def test_more_in_sync_than_there_are_is_refused(layout):
    Path("headrace.toml").write_text("[kafka]\nbootstrap = 'a:1'\nreplication = 1")
    assert refused(lambda: choose(Wanted(), layout)).code == "bad_deployment"


def test_flags_go_over_the_file(layout):
    Path("headrace.toml").write_text(
        "[kafka]\nbootstrap = 'a:1'\nprefix = 'p-'\n[spark]\nmaster = 'yarn'\nmemory_limit = '3GB'"
    )
    chosen = choose(Wanted(kafka="b:2", spark="local[2]", tables="s3://x/y"), layout)
    assert chosen.kafka == KafkaSettings("b:2", "p-")
    assert chosen.spark == SparkSettings("local[2]", memory_limit="3GB")
    assert chosen.tables == TableSettings("s3://x/y")


def test_a_file_that_is_named_goes_before_the_folders(layout, tmp_path):
    Path("headrace.toml").write_text("[tables]\nurl = '/here'")
    named = tmp_path / "other.toml"
    named.write_text("[tables]\nurl = '/there'")
    assert choose(Wanted(), layout).tables.url == "/here"
    assert choose(Wanted(config=named), layout).tables.url == "/there"


def test_what_was_run_in_last_is_kept(layout):
    assert choose(Wanted(), layout) == Deployment()
    on_kafka = Deployment(KafkaSettings("a:1"), spark=SparkSettings("local[1]"))
    keep(layout, on_kafka)
    assert kept(layout) == on_kafka
    assert choose(Wanted(), layout) == on_kafka
    assert choose(Wanted(kafka="b:2", spark="local[4]"), layout).kafka.bootstrap == "b:2"
    layout.deployment.write_text("{")
    assert refused(lambda: kept(layout)).code == "bad_deployment"


def test_a_log_and_its_tables_stay_together(layout):
    layout.log.mkdir()
    error = refused(lambda: choose(Wanted(kafka="a:1"), layout))
    assert (error.code, "promote" in error.hint) == ("other_place", True)
    assert refused(lambda: choose(Wanted(tables="s3://a/b"), layout)).code == "other_place"
    keep(layout, Deployment(KafkaSettings("a:1")))
    Path("headrace.toml").write_text("[tables]\nurl = ''")
    assert "no way back" in refused(lambda: choose(Wanted(), layout)).hint


def test_secrets_come_from_the_environment(monkeypatch):
    told = {"a": "x${ONE}y${TWO}", "b": "plain"}
    assert expanded(told, {"ONE": "1", "TWO": "2"}) == {"a": "x1y2", "b": "plain"}
    assert refused(lambda: expanded(told, {"ONE": "1"})).code == "unset_variable"
    monkeypatch.setenv("PASSWORD", "secret")
    settings = KafkaSettings("a:1", properties={"sasl.password": "${PASSWORD}"})
    assert kafka_of(settings).properties == {"sasl.password": "secret"}


def test_a_site_is_of_what_is_kept(layout):
    assert not open_site(layout, SystemClock()).is_shared
    keep(layout, Deployment(KafkaSettings("a:1"), TableSettings(str(layout.root / "far"))))
    site = open_site(layout, SystemClock())
    assert isinstance(site, KafkaSite)
    assert site.tables_folder == layout.root / "far"
    far = site_of(layout, SystemClock(), Deployment(tables=TableSettings("s3://a/b")))
    assert far.tables_folder is None
