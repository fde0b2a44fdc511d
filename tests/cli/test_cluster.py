from __future__ import annotations

import json

from headrace.app.cli.main import call


def test_where_no_cluster_runs_that_is_said(tmp_path, capsys):
    folder = str(tmp_path / "none")
    assert call(["cluster", "status", "--folder", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["bootstrap"], told["pids"]) == (False, None, {})
    assert call(["cluster", "down", "--folder", folder]) == 0
    assert "no cluster was running" in capsys.readouterr().out
