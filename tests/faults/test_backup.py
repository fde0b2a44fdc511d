"""A backup taken under load, then everything is killed, restored elsewhere and run again."""

from __future__ import annotations

from pathlib import Path

from live import BATCH, Run, breaches, drain, headrace, pipeline_text, sending, until

from headrace.log.embedded import EmbeddedLogReader
from headrace.model.log import TopicInfo
from headrace.testing.checker import Acknowledged


def events_topic(data: Path) -> TopicInfo:
    log = EmbeddedLogReader(data / "log")
    try:
        return log.describe()["events"]
    finally:
        log.close()


def test_backup_under_load_and_restore(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    with Run(tmp_path) as run, sending(run) as client:
        until(lambda: client.sent > 500, "events get through")
        before = Acknowledged(tmp_path / "acknowledged").read()
        headrace(tmp_path, "backup", tmp_path / "copy")
        at = client.sent
        until(lambda: client.sent > at + 100, "the run goes on")
        run.kill_all()
    lost_from = client.sent

    # Only what was acknowledged before the backup began has to be in it.
    (tmp_path / "acknowledged").write_text("".join(f"{n}\n" for n in before))
    headrace(tmp_path, "restore", tmp_path / "copy", "--data", "again")
    again = tmp_path / "again"
    assert breaches_of_rows(again, lost_from) == []
    assert events_topic(again).incarnation != events_topic(tmp_path / "data").incarnation

    # What comes now is told apart from what the lost run was given after the backup.
    with Run(tmp_path, data="again") as run, sending(run, lost_from) as client:
        until(lambda: client.sent > lost_from + 10 * BATCH, "events get through")
        client.finish()
    drain(tmp_path, data="again")
    assert breaches(again, client.sent) == []


def breaches_of_rows(data: Path, sent: int) -> list[str]:
    """Return breaches; offsets of the topic that was made anew say nothing yet."""
    return [b for b in breaches(data, sent) if not b.startswith("the log ends at")]
