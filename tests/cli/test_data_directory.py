"""A data directory that cannot be one."""

from __future__ import annotations


def test_a_place_where_nothing_can_be_written(headrace, tmp_path):
    assert headrace("init", "minimal").status == 0
    (tmp_path / "file").write_text("in the way")
    data = tmp_path / "file" / "data"
    ended = headrace("run", "pipeline.py", "--data", data)
    assert ended.status == 1
    assert "cannot be written: Not a directory" in " ".join(ended.err.split())
    assert "--data" in ended.err
