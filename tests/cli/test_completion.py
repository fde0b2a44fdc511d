"""Shells complete what is typed: bash's own function is run, in bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.shell_completion import ShellComplete

from headrace.app.cli.completion import SHELLS, VARIABLE
from headrace.app.cli.main import VERBS, cli
from headrace.model.layout import Layout
from headrace.model.plan import Plan, Table, Topic

BASH = shutil.which("bash")
TYPED = """
source <(headrace completion bash)
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
$(complete -p headrace | sed 's/.*-F \\([^ ]*\\) .*/\\1/') headrace
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(folder, *words):
    """Return what bash would offer after these words, of which the last is begun."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        [BASH, "-c", TYPED, "bash", "headrace", *words],
        env={**os.environ, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a data directory in which a pipeline has run."""
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    layout = Layout.at(tmp_path / "data")
    layout.run.mkdir(parents=True)
    topics = (Topic("events", 1), Topic("extra", 1), Topic("other", 1))
    plan = Plan("p", topics=topics, tables=(Table("eaten", (), ()),))
    layout.plan.write_bytes(msgspec.json.encode(plan))
    return tmp_path


@pytest.mark.skipif(BASH is None, reason="bash is missing")
def test_bash_completes_verbs_and_names(folder):
    assert completed(folder, "") == list(VERBS)
    assert completed(folder, "tail", "e") == ["events", "extra"]


def offered(*words):
    """Return what any shell is offered after these words, of which the last is begun."""
    asked = ShellComplete(cli, {}, "headrace", VARIABLE)
    return [item.value for item in asked.get_completions(list(words[:-1]), words[-1])]


def test_verbs_options_and_names_are_offered(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert offered("to") == ["topics", "tokens"]
    assert offered("tokens", "re") == ["revoke"]
    assert offered("run", "--tls") == ["--tls-cert", "--tls-key"]
    assert offered("tail", "--table", "") == ["eaten"]
    assert offered("topics", "delete", "o") == ["other"]
    assert offered("--v") == ["--version"]


def test_where_there_is_no_data_directory_nothing_is_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert offered("tail", "--data", "nowhere", "") == []
    assert offered("tail", "--data", "data", "x") == []
    (folder / "data" / "run" / "plan.json").write_text("{")
    assert offered("tail", "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(headrace, shell):
    ended = headrace("completion", shell)
    assert ended.status == 0
    assert f"_HEADRACE_COMPLETE={shell}_complete" in ended.out
