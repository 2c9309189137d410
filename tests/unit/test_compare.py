"""Two result folders of the benchmarks, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compare import changes, main

SPEED = {"engine": "ours, fused float16", "model": "3B", "kind": "swiss"}
ERROR = {"name": "virnucpro fp16", "model": "3B", "weights": "random", "cosine_distance": 1e-6, "ratio": None}


def results(folder: Path, rate: float, theirs: float = 500.0) -> Path:
    folder.mkdir()
    speeds = [{**SPEED, "tokens_per_second": rate}, {**SPEED, "engine": "fair-esm", "tokens_per_second": theirs}]
    (folder / "speed.json").write_text(json.dumps({"device": "a", "rows": speeds}))
    (folder / "accuracy.json").write_text(json.dumps([ERROR]))
    return folder


@pytest.mark.parametrize(("rate", "theirs", "code"), [(1000, 500, 0), (985, 500, 0), (970, 500, 1), (1000, 100, 0)])
def test_a_rate_of_ours_that_fell_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float, theirs: float, code: int
) -> None:
    before, after = results(tmp_path / "a", 1000.0), results(tmp_path / "b", rate, theirs)
    assert main([str(before), str(after)]) == code
    assert "3 figures" in capsys.readouterr().out


def test_rows_are_told_apart_by_their_names(tmp_path: Path) -> None:
    before, after = results(tmp_path / "a", 1000.0), results(tmp_path / "b", 1100.0)
    found = {(change.row, change.figure): (change.before, change.after) for change in changes(before, after)}
    assert found[("3B", "swiss", "ours, fused float16"), "tokens_per_second"] == (1000.0, 1100.0)
    assert found[("3B", "random", "virnucpro fp16"), "cosine_distance"] == (1e-6, 1e-6)


def test_folders_with_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(results(tmp_path / "a", 1.0)), str(tmp_path / "empty")]) == 1
    assert "no figure in common" in capsys.readouterr().out
