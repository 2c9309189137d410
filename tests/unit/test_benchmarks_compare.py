"""Comparing two folders of benchmark results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.compare import main, pairs, read_folder
from benchmarks.compare_checkouts import faster


def speed(folder: Path, rates: dict[str, float], device: str = "H100") -> Path:
    folder.mkdir()
    rows = [
        {"model": "3B", "kind": "swiss", "engine": engine, "proteins": 9, "tokens_per_second": rate, "share": 0.5}
        for engine, rate in rates.items()
    ]
    (folder / "speed-3B.json").write_text(json.dumps({"device": device, "torch": "2", "rows": rows}))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return main()


def test_ratios_and_what_is_in_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = speed(tmp_path / "old", {"ours fp16": 100.0, "gone": 5.0})
    new = speed(tmp_path / "new", {"ours fp16": 97.0, "added": 7.0}, "H200")
    errors = [
        {"model": "8M", "weights": "random", "name": "fp16", "computed_by": "x", "pooled_error": 2e-3, "ratio": None}
    ]
    (old / "accuracy.json").write_text(json.dumps(errors))
    (new / "accuracy.json").write_text(json.dumps([errors[0] | {"computed_by": "y", "pooled_error": 1e-3}]))
    ratios = {(one.key[-1], one.measure): one.ratio for one in pairs(read_folder(old)[0], read_folder(new)[0])}
    assert ratios == {
        ("ours fp16", "tokens_per_second"): 0.97,
        ("ours fp16", "share"): 1,
        ("fp16", "pooled_error"): 0.5,
    }
    assert call(monkeypatch, old, new) == 0
    text = capsys.readouterr().out
    assert "not of one machine" in text
    assert f"only in {old}: speed-3B 3B swiss gone" in text
    assert f"only in {new}: speed-3B 3B swiss added" in text
    assert call(monkeypatch, old, new, "--slowest", 0.98) == 1
    assert call(monkeypatch, old, new, "--slowest", 0.96) == 0
    assert call(monkeypatch, old, new, "--only", "nothing") == 1


def test_of_two_rounds_the_faster_counts() -> None:
    one = {"torch": "2", "rows": [{"model": "3B", "engine": "a", "tokens_per_second": 5.0}]}
    other = {
        "rows": [
            {"model": "3B", "engine": "a", "tokens_per_second": 7.0},
            {"model": "3B", "engine": "b", "tokens_per_second": 1.0},
        ]
    }
    assert faster(one, other) == {"torch": "2", **other} == faster({**other, "torch": "2"}, one)
