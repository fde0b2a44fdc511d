"""A pipeline file that changed under the tables that it made before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deltalake import DeltaTable
from live import (
    VIEWS,
    Run,
    breaches,
    contents,
    drain,
    free_port,
    good,
    headrace,
    numbers_in,
    pipeline_text,
    processed,
    sending,
    until,
)

from headrace.log.embedded import EmbeddedLogReader

TABLE = "SELECT number, kind, amount, number % 7 AS bucket FROM events"
VIEW = "SELECT kind, count(*) AS n, sum(amount) AS total FROM numbers GROUP BY kind"
TRIMMING = """every="20 ms", segment_bytes_max=4096, horizon="0 s", log_retention="0 s",
    tidy_every="50 ms\""""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    return tmp_path


def feed(folder: Path, first: int = 0, count: int = 300, fields: str = "") -> int:
    """Run, send events until there are `count`, stop; return the first number not sent."""
    with Run(folder) as run:
        with sending(run, first, fields=fields) as client:
            until(lambda: client.sent >= first + count, "events get through")
            client.finish()
        until(lambda: processed(run.data) == client.sent, "all is processed")
    return client.sent


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "pipeline.py").read_text()
    assert old in text
    (folder / "pipeline.py").write_text(text.replace(old, new))


def outputs(folder: Path) -> dict[str, bool]:
    found = json.loads(headrace(folder, "outputs", "list", "--json"))
    return {o["output"]: o["made"] for o in found}


def test_added_columns_are_null_in_old_rows(folder: Path) -> None:
    sent = feed(folder)
    change(folder, "    amount: int = 0\n", '    amount: int = 0\n    mood: str = "calm"\n')
    change(folder, "AS bucket FROM", "AS bucket, mood, number * 2 AS double FROM")
    end = feed(folder, sent, fields=',"mood":"good"')
    assert breaches(folder / "data", end) == []
    rows = DeltaTable(folder / "data" / "tables" / "numbers").to_pyarrow_table()
    for row in rows.select(["number", "mood", "double"]).to_pylist():
        is_new = row["number"] >= sent
        assert row["mood"] == ("good" if is_new else None)
        assert row["double"] == (row["number"] * 2 if is_new else None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (", number % 7 AS bucket FROM", " FROM", "no longer selected"),
        ("number % 7 AS bucket", "CAST(number % 7 AS VARCHAR) AS bucket", "would become"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_touched(
    folder: Path, old: str, new: str, said: str
) -> None:
    sent = feed(folder)
    before = contents(folder / "data")
    good_text = (folder / "pipeline.py").read_text()
    change(folder, old, new)
    plan = (folder / "data" / "run" / "plan.json").read_bytes()
    told = headrace(folder, "run", "pipeline.py", "--port", free_port(), status=1)
    assert said in told
    assert "bucket" in told
    assert "hint" in told
    assert contents(folder / "data") == before
    assert (folder / "data" / "run" / "plan.json").read_bytes() == plan
    (folder / "pipeline.py").write_text(good_text)
    assert breaches(folder / "data", feed(folder, sent)) == []


def test_a_changed_view_takes_the_old_ones_place(folder: Path) -> None:
    sent = feed(folder)
    before = set(outputs(folder))
    new = "SELECT kind, max(amount) AS most, count(*) AS n FROM numbers GROUP BY kind"
    change(folder, VIEW, new)
    end = feed(folder, sent)
    views = {"by_kind": "SELECT kind, max(amount), count(*) FROM rows GROUP BY kind"}
    assert breaches(folder / "data", end, views) == []
    after = outputs(folder)
    assert all(after.values()), after
    assert len([name for name in after if name.startswith("state/")]) == 1
    assert set(after) != before


@pytest.mark.parametrize("options", ['every="20 ms"', TRIMMING], ids=["log kept", "log trimmed"])
def test_a_new_view_fills_itself_from_an_old_table(folder: Path, options: str) -> None:
    (folder / "pipeline.py").write_text(pipeline_text(options))
    sent = feed(folder, count=1_000)
    if options == TRIMMING:
        log = EmbeddedLogReader(folder / "data" / "log")
        assert sum(log.starts("events")) > 0, "nothing was trimmed"
        log.close()
    sql = "SELECT bucket, min(number) AS least, count(*) AS n FROM numbers GROUP BY bucket"
    with (folder / "pipeline.py").open("a") as file:
        file.write(f'pipeline.view("by_bucket", "{sql}")\n')
    views = {**VIEWS, "by_bucket": sql.replace("numbers", "rows")}
    drain(folder)
    assert breaches(folder / "data", sent, views) == []
    assert breaches(folder / "data", feed(folder, sent), views) == []


def test_a_table_and_a_view_that_are_dropped_and_come_again(folder: Path) -> None:
    more = 'pipeline.table("few", "SELECT number FROM events WHERE number < 150")\n'
    more += 'pipeline.view("many", "SELECT bucket, count(*) AS n FROM numbers GROUP BY bucket")\n'
    without = (folder / "pipeline.py").read_text()
    (folder / "pipeline.py").write_text(without + more)
    sent = feed(folder)
    assert numbers_in(folder / "data", "few") == good(range(150))
    (folder / "pipeline.py").write_text(without)
    sent = feed(folder, sent)
    left = {name for name, made in outputs(folder).items() if not made}
    assert {"tables/few", "views/many"} < left
    headrace(folder, "outputs", "drop", "few", "many", "--yes")
    assert all(outputs(folder).values())
    assert not (folder / "data" / "tables" / "few").exists()
    sent = feed(folder, sent)
    (folder / "pipeline.py").write_text(without + more.replace("< 150", ">= 0"))
    end = feed(folder, sent)
    # A new table begins where the pipeline stands; a new view begins with all that its table has.
    assert numbers_in(folder / "data", "few") == good(range(sent, end))
    views = {**VIEWS, "many": "SELECT bucket, count(*) FROM rows GROUP BY bucket"}
    assert breaches(folder / "data", end, views) == []
