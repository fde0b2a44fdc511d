"""Every example of the README and of the guide does what the text around it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from headrace.app.cli.main import call, cli
from headrace.app.cluster.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
OLD_SYSTEMS = (ROOT / "docs" / "old-systems.md").read_text()
BLOCK = re.compile(r"(?:<!-- (?P<name>[^>]*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
BIN = Path(sys.executable).parent


def blocks(text, kind):
    return [(m["name"], m["text"]) for m in BLOCK.finditer(text) if m["kind"] == kind]


def commands(text):
    """Yield every `headrace …` line of the shell blocks, without its comment."""
    for _, block in blocks(text, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                words.pop(0)
            if words and words[0] == "headrace":
                yield words[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every named file of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    for match in BLOCK.finditer(GUIDE):
        if match["name"]:
            path = folder / match["name"]
            path.parent.mkdir(exist_ok=True)
            path.write_text(match["text"])
    return folder


ALL_COMMANDS = [*commands(README), *commands(GUIDE), *commands(OLD_SYSTEMS)]


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_exists_with_its_options(words):
    command, context, rest = cli, None, list(words)
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        name = rest.pop(0)
        command = command.get_command(context, name)
        assert command is not None, name
    known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    assert {w for w in rest if w.startswith("--")} <= known


def test_there_is_something_to_test():
    assert len(ALL_COMMANDS) > 15
    found = {name for name, _ in blocks(GUIDE, "python")}
    assert found == {"shop.py", "test_shop.py", "stock/stock.py", "replay.py", "read.py"}


@pytest.mark.parametrize("name", ["shop.py", "stock/stock.py", "replay.py"])
def test_the_guides_pipelines_pass_the_check(name, folder, capsys):
    assert call(["check", str(folder / name)]) == 0, capsys.readouterr()


def test_the_readmes_pipeline_passes_the_check(tmp_path, capsys):
    ((_, text),) = blocks(README, "python")
    (tmp_path / "pipeline.py").write_text(text)
    assert call(["check", str(tmp_path / "pipeline.py")]) == 0, capsys.readouterr()


@pytest.mark.parametrize("name", ["shop.py", "stock/stock.py"])
def test_the_guides_cases_pass(name, folder, capsys):
    assert call(["test", str(folder / name)]) == 0, capsys.readouterr()


def test_the_guides_pytest_passes(folder):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"]
    told = subprocess.check_output(command, cwd=folder, text=True, timeout=120)
    assert "1 passed" in told


def test_links_lead_somewhere():
    patterns = ("docs/*.md", "docs/engines/*.md", "examples/*/README.md")
    for page in (ROOT / "README.md", *(p for pattern in patterns for p in ROOT.glob(pattern))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@contextmanager
def running(pipeline, data, folder):
    """Run a pipeline; yield its port."""
    port = free_port()
    command = [BIN / "headrace", "run", pipeline, "--data", data, "--port", str(port)]
    run = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        for line in run.stderr:
            if "runs at" in line:
                break
        assert run.poll() is None
        yield port
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(30)
        run.stderr.close()


@pytest.fixture
def shop(folder):
    """The guide's pipeline, running."""
    with running("shop.py", "shop-data", folder) as port:
        yield port


def heard(command, word):
    """Return what a command that goes on prints, up to a line with a word in it."""
    listening = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, text=True)
    try:
        return next((line for line in listening.stdout if word in line), "")
    finally:
        listening.kill()
        listening.communicate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's requests are made by curl")
def test_the_guides_first_events(tmp_path):
    section = GUIDE.split("## First events")[1].split("## First pipeline")[0]
    port, answers = free_port(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert call(["init"]) == 0
        command = [BIN / "headrace", "run", "pipeline.py", "--port", str(port), "--until-eof"]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as run:
            next(line for line in run.stderr if "runs at" in line)
            lines = [line for _, b in blocks(section, "sh") for line in b.splitlines()]
            for line in (line for line in lines if line.startswith("curl")):
                words = shlex.split(line.replace("8080", str(port)))
                words += ["-sS", "-f", "--retry", "20", "--retry-all-errors", "--retry-delay", "1"]
                answers.append(subprocess.check_output(words, text=True, timeout=60))
            (tail,) = [shlex.split(line)[1:] for line in lines if line.startswith("headrace tail")]
            tail = [word for word in tail if word != "--exit"]
            told = subprocess.check_output(
                [BIN / "headrace", *tail, "--json", "--count", "2"], text=True, timeout=60
            )
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=30)
    assert answers[:2] == ["Sword Purchased!\n", "Joined guild!\n"]
    assert "rows" in json.loads(answers[2])
    events = {json.loads(line)["event_type"] for line in told.splitlines()}
    assert events == {"purchase_sword", "join_guild"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's requests are made by curl")
def test_the_guide_from_run_to_dead_letter(shop, folder, capsys, monkeypatch):
    section = GUIDE.split("## Run it")[1].split("## Look inside")[0]
    lines = [line for _, b in blocks(section, "sh") for line in b.splitlines() if "curl" in line]
    header = re.search(r'JSON="(.*)"', section)[1]
    (listening,) = [line for line in lines if "/live" in line]
    answers = []
    for line in lines[: lines.index(listening)]:
        words = shlex.split(line.replace("8080", str(shop)).replace("$JSON", header))
        wait = ["--retry", "20", "--retry-all-errors", "--retry-delay", "1", "-f"]
        extra = wait if "/sold" in line or "views" in line or "/v1/sql" in line else []
        answers.append(subprocess.check_output([*words, "-sS", *extra], text=True, timeout=60))
    assert len(answers) == 6
    assert answers[0] == "OK\n"
    assert json.loads(answers[1]) == {"accepted": 1, "dead": 0, "errors": []}
    assert json.loads(answers[2])["dead"] == 1
    assert "rows" in json.loads(answers[3])
    assert "rows" in json.loads(answers[4])
    assert [c["name"] for c in json.loads(answers[5])["columns"]] == ["sold", "cents"]
    assert "desk" in heard(listening.replace("8080", str(shop)), "desk")
    monkeypatch.setenv("HEADRACE_DATA", str(folder / "shop-data"))
    capsys.readouterr()
    assert call(["tail", "sales", "--from", "beginning", "--exit"]) == 0
    tailed = [json.loads(line)["sale_id"] for line in capsys.readouterr().out.splitlines()]
    assert tailed == ["1", "2", "3"]
    told = subprocess.check_output([sys.executable, "read.py"], cwd=folder, text=True, timeout=60)
    assert "tables.sales" in told
    assert re.search(r"desk\W+1\W", told)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's requests are made by curl")
def test_the_old_systems_commands_answer(tmp_path, capsys, monkeypatch):
    """Each line of the game's block, as it stands; a question is asked again until all is in."""
    ((_, block),) = [(name, b) for name, b in blocks(OLD_SYSTEMS, "sh") if name == "game"]
    ((_, script),) = [(n, b) for n, b in blocks(OLD_SYSTEMS, "python") if n == "game.py"]
    (tmp_path / "game.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    told = {}

    def answer(words):
        if words[0] != "headrace":
            return subprocess.check_output(["curl", "-sS", *words[1:]], text=True, timeout=60)
        capsys.readouterr()
        assert call(words[1:]) == 0, (words, capsys.readouterr())
        return capsys.readouterr().out

    with running(ROOT / "examples" / "game" / "pipeline.py", "game-data", tmp_path) as port:
        for line in block.splitlines():
            words = shlex.split(line.replace("8080", str(port)))
            if "--table" in line:
                # It may not be committed yet: wait for the one that was sent.
                words = [word for word in words if word != "--exit"] + ["--count", "1"]
            told[line] = answer(words)
        tail = "headrace tail --table request_group --data game-data --from beginning --json"
        rows = answer([*shlex.split(tail), "--count", "2"]).splitlines()
        frame = subprocess.check_output([sys.executable, "game.py"], cwd=tmp_path, text=True)
    replies = [told[line] for line in told if line.startswith("curl")]
    assert replies == [
        *("Sword Purchased!\n", "Knife Purchased!\n", "Guild Joined!\n"),
        *("Request Submitted!\n", "Request Submitted!\n", "Member Accepted!\n"),
    ]
    tails = [text.splitlines() for line, text in told.items() if line.startswith("headrace tail")]
    assert [json.loads(line)["event_type"] for line in tails[0]] == [
        *("purchase_sword", "purchase_knife", "joined_guild:red"),
    ]
    assert len(tails[1]) == 33
    assert {"raw_event", "timestamp", "Accept", "Host", "User-Agent"} <= set(json.loads(rows[0]))
    assert "purchase_knife" in frame
