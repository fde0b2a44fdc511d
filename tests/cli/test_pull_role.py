"""Who holds the id under which a data directory's pull role has its leases."""

from __future__ import annotations

import threading

import pytest

from headrace.app.site import open_site
from headrace.app.sources import owner_of
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.model.role import Role


@pytest.fixture
def make_role(tmp_path):
    layout = Layout.at(tmp_path)
    layout.run.mkdir()

    def make():
        events = threading.Event(), threading.Event()
        site = open_site(layout, SystemClock())
        return Role(
            "pull", Plan("p"), layout, site, "", 0, ("pull",), SystemClock(), *events, lambda: None
        )

    return make


def test_the_id_is_kept(make_role):
    with owner_of(make_role()) as first:
        pass
    with owner_of(make_role()) as second:
        assert first
        assert second == first


def test_one_at_a_time_has_it(make_role):
    role, had = make_role(), []

    def wait():
        with owner_of(role) as owner:
            had.append(owner)

    with owner_of(make_role()) as first:
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.5)
        assert had == []
    waiting.join(60)
    assert had == [first]


def test_one_that_is_told_to_stop_waits_no_longer(make_role):
    role = make_role()
    with owner_of(make_role()):
        role.stop.set()
        with owner_of(role) as owner:
            assert owner is None
