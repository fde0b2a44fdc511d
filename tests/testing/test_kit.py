"""The kit tests pipelines; these tests see that it notices what is wrong."""

from __future__ import annotations

import json

import pytest

from headrace.app.cli.main import call
from headrace.model.errors import Invalid
from headrace.testing.kit import PipelineKit, read_case, run_case

PIPELINE = """
from headrace import Pipeline, Record, field, tumbling

pipeline = Pipeline("shop")


class Sale(Record):
    item: str
    price: int
    buyer: str | None = field("Buyer", default=None)


sales = pipeline.topic("sales", Sale, partitions=2, id="item")
pipeline.table("dear", "SELECT item, price, buyer FROM sales WHERE price >= 100")
pipeline.view(
    "by_buyer", "SELECT buyer, count(*) AS n, sum(price) AS spent FROM dear GROUP BY buyer"
)
pipeline.view(
    "per_minute", "SELECT count(*) AS n FROM sales", window=tumbling("1 minute", on="received_at")
)
"""


@pytest.fixture
def pipeline(tmp_path):
    path = tmp_path / "shop.py"
    path.write_text(PIPELINE)
    return path


@pytest.fixture
def kit(pipeline):
    with PipelineKit.of_file(pipeline) as kit:
        yield kit


def test_records_become_rows_and_counts(kit):
    kit.send("sales", {"item": "a", "price": 100}, {"item": "b", "price": 99})
    kit.send("sales", {"item": "c", "price": 300, "Buyer": "x"})
    assert kit.rows("dear", "item", "price", "buyer") == [
        {"item": "a", "price": 100, "buyer": None},
        {"item": "c", "price": 300, "buyer": "x"},
    ]
    assert kit.rows("by_buyer") == [
        {"buyer": "x", "n": 1, "spent": 300},
        {"buyer": None, "n": 1, "spent": 100},
    ]


def test_counts_go_on_after_they_were_looked_at(kit):
    for number in range(3):
        kit.send("sales", {"item": f"{number}", "price": 100})
        assert kit.rows("by_buyer", "n") == [{"n": number + 1}]


def test_time_is_the_tests_own(kit):
    begun = kit.clock.now_us()
    kit.send("sales", {"item": "a", "price": 1})
    kit.advance(60)
    kit.send("sales", {"item": "b", "price": 1}, {"item": "c", "price": 1})
    assert [row["n"] for row in kit.rows("per_minute")] == [1, 2]
    assert kit.clock.now_us() == begun + 60_000_000


def test_what_is_bad_becomes_a_dead_letter(kit):
    kit.send("sales", b"nonsense", {"item": 1, "price": 2}, {"item": "a", "price": 100})
    codes = [row["code"] for row in kit.rows("dead_letters")]
    assert sorted(codes) == ["invalid_json", "invalid_record"]
    assert len(kit.rows("dear")) == 1


def test_a_repeated_id_counts_once(kit):
    kit.send("sales", {"item": "a", "price": 100})
    kit.send("sales", {"item": "a", "price": 100})
    assert kit.rows("by_buyer", "n") == [{"n": 1}]
    kit.advance(3600)
    kit.send("sales", {"item": "a", "price": 100})
    assert kit.rows("by_buyer", "n") == [{"n": 2}]


def test_unknown_names_are_told(kit):
    with pytest.raises(Invalid, match="no topic nope"):
        kit.send("nope", {})
    with pytest.raises(Invalid, match="no table or view nope") as refused:
        kit.rows("nope")
    assert "by_buyer" in refused.value.hint


def test_a_broken_pipeline_is_refused(tmp_path):
    path = tmp_path / "p.py"
    path.write_text('from headrace import Pipeline\np = Pipeline("p")\np.table("t", "SELECT 1")\n')
    with pytest.raises(Invalid, match="fault"):
        PipelineKit.of_file(path)


# --- cases as JSON

CASE = {
    "records": {"sales": [{"item": "a", "price": 100, "Buyer": "x"}]},
    "steps": [
        {"topic": "sales", "after_s": 60, "records": [{"item": "b", "price": 200, "Buyer": "x"}]},
        {"topic": "sales", "raw": ["nonsense"]},
    ],
    "expect": {
        "dear": [{"item": "b", "price": 200}, {"item": "a"}],
        "by_buyer": [{"buyer": "x", "n": 2, "spent": 300}],
        "per_minute": [{"n": 1}, {"n": 1}],
        "dead_letters": [{"code": "invalid_json", "value": "bm9uc2Vuc2U="}],
    },
}


def write(folder, name="case.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**CASE, **changes}))
    return path


def test_a_case_that_fits_has_no_mismatch(pipeline, tmp_path):
    with PipelineKit.of_file(pipeline) as kit:
        plan = kit.plan
    assert run_case(plan, read_case(write(tmp_path))) == []


def test_a_case_that_does_not_fit_says_which_rows(pipeline, tmp_path):
    with PipelineKit.of_file(pipeline) as kit:
        plan = kit.plan
    expect = {"by_buyer": [{"buyer": "y", "n": 2}], "dear": [{"item": "a"}, {"item": "b"}]}
    (mismatch,) = run_case(plan, read_case(write(tmp_path, expect=expect)))
    assert mismatch.output == "by_buyer"
    assert mismatch.missing == [{"buyer": "y", "n": 2}]
    assert mismatch.unexpected == [{"buyer": "x", "n": 2}]


@pytest.mark.parametrize("text", ["{", "{}", '{"expect": {}, "recrods": {}}', '{"expect": []}'])
def test_a_case_that_says_nonsense_is_refused(text, tmp_path):
    path = tmp_path / "case.json"
    path.write_text(text)
    with pytest.raises(Invalid, match="is no test case"):
        read_case(path)


def test_the_verb_runs_the_folder_beside_the_pipeline(pipeline, tmp_path, capsys):
    folder = tmp_path / "tests"
    folder.mkdir()
    write(folder, "good.json")
    assert call(["test", str(pipeline)]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out
    write(folder, "wrong.json", expect={"dear": []})
    assert call(["test", str(pipeline)]) == 1
    told = capsys.readouterr().out
    assert "1 passed, 1 failed" in told
    assert 'dear: unexpected {"' in told
    assert call(["test", str(pipeline), "--json", str(folder / "wrong.json")]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert not result["passed"]
    assert len(result["mismatches"][0]["unexpected"]) == 2


def test_no_cases_are_told(pipeline, capsys):
    assert call(["test", str(pipeline)]) == 1
    assert "no cases" in capsys.readouterr().err
