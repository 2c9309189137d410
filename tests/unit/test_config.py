"""The configuration: defaults, samples in all their forms, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from virnucpro.base.errors import UserError
from virnucpro.config import find_samples, load_config, sample_name

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    path = tmp_path / "my.proteins.faa"
    path.write_text(">a\nMKV\n")
    return str(path)


def load(given: dict[str, Any], beside: Path = ROOT) -> Any:
    return load_config(given, SCHEMA, beside=beside)


def described(schema: dict[str, Any], name: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for key, part in schema["properties"].items():
        found.append((f"{name}{key}", part))
        if "properties" in part:
            found += described(part, f"{name}{key}.")
    return found


def test_every_key_has_a_description_and_a_default() -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    keys = described(schema)
    assert len(keys) > 15
    assert [name for name, part in keys if not part.get("description") or "default" not in part] == []


def test_the_shipped_config_gives_the_defaults(fasta: str) -> None:
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert load({**shipped, "samples": fasta}) == load({"samples": fasta})
    schema = yaml.safe_load(SCHEMA.read_text())
    assert {name.split(".")[0] for name, _ in described(schema)} == set(shipped), "a key is missing in config.yaml"


def test_defaults_are_those_of_virnucpro(fasta: str) -> None:
    run = load({"samples": fasta})
    assert (run.model, run.layers, run.pooling, run.long_policy) == (
        "esm2_t36_3B_UR50D",
        ("last",),
        ("mean",),
        "window",
    )
    assert run.samples == {"my.proteins": (Path(fasta),)}
    assert run.chunk_residues == 20_000_000
    assert run.model_path is None


def test_nested_defaults_are_filled_one_by_one(fasta: str) -> None:
    run = load({"samples": fasta, "long_proteins": {"policy": "full"}})
    assert (run.long_policy, run.longest, run.overlap) == ("full", 1022, 511)


def test_numbers_inside_lists_and_mappings_on_the_command_line(fasta: str) -> None:
    run = load({"samples": fasta, "layers": ["0", "-1", "last"], "long_proteins": {"longest": "500", "overlap": "20"}})
    assert (run.layers, run.longest, run.overlap) == ((0, -1, "last"), 500, 20)


def test_chunks_are_smaller_when_every_residue_is_kept(fasta: str) -> None:
    run = load({"samples": fasta, "pooling": ["mean", "per_residue"], "layers": [33, 36]})
    assert run.chunk_residues * 2560 * 4 * 2 <= 2_000_000_000
    assert run.pooling == ("mean", "per_residue")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modle": "esm2_demo"}, ["'modle'", "did you mean 'model'"]),
        ({"zebra": 1}, ["'zebra'", "known keys are samples"]),
        ({"long_proteins": {"polcy": "full"}}, ["'polcy'", "long_proteins", "'policy'"]),
        ({"model": "esm2_t36"}, ["esm2_t36", "esm2_t36_3B_UR50D", ".pt"]),
        ({"layers": "first"}, ["'layers'", "'first'", "last or a whole number"]),
        ({"pooling": "max"}, ["'pooling'", "'max'", "mean, per_residue"]),
        ({"precision": "fp8000"}, ["'precision'", "fp16"]),
        ({"chunk_residues": 0}, ["'chunk_residues'", "0"]),
        ({"long_proteins": {"longest": 100, "overlap": 100}}, ["overlap", "less than", "100"]),
        ({"merge": {"formats": ["csv"]}}, ["'merge.formats.0'", "'csv'", "parquet"]),
        ({"merge": {"formats": ["virnucpro_pt"]}, "pooling": "per_residue"}, ["virnucpro_pt", "mean"]),
        ({"merge": {"formats": ["virnucpro_pt"]}, "layers": [0, "last"]}, ["virnucpro_pt", "one layer"]),
        ({"gpus_per_job": "two"}, ["'gpus_per_job'", "'two'", "whole number"]),
        ({"samples": []}, ["'samples'"]),
        ({"samples": "missing.faa"}, ["missing.faa", "does not exist"]),
        ({"samples": "/"}, ["folder"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(given: dict[str, Any], words: list[str], fasta: str) -> None:
    with pytest.raises(UserError) as error:
        load({"samples": fasta, **given})
    text = str(error.value)
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


def test_samples_in_every_form(tmp_path: Path) -> None:
    one, two = tmp_path / "one.faa", tmp_path / "two.fasta.gz"
    for file in (one, two):
        file.write_text(">a\nM\n")
    expected = {"one": (one,), "two": (two,)}
    assert find_samples(str(one), tmp_path) == {"one": (one,)}
    assert find_samples(f"{one},{two}", tmp_path) == expected
    assert find_samples([str(one), str(two)], tmp_path) == expected
    assert find_samples({"x": str(one), "y": [str(one), str(two)]}, tmp_path) == {"x": (one,), "y": (one, two)}
    for ending, tab in ((".tsv", "\t"), (".csv", ",")):
        table = tmp_path / f"samples{ending}"
        rows = [("sample", "path"), ("x", one), ("y", one), ("y", two)]
        table.write_text("\n".join(tab.join(map(str, row)) for row in rows) + "\n\n")
        assert find_samples(str(table), tmp_path) == {"x": (one,), "y": (one, two)}


def test_relative_samples_are_looked_for_beside_the_workflow_too(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.faa").write_text(">a\nM\n")
    monkeypatch.chdir(tmp_path / "here")
    assert find_samples("a.faa", tmp_path / "there") == {"a": (tmp_path / "there" / "a.faa",)}
    (tmp_path / "here" / "a.faa").write_text(">a\nM\n")
    assert find_samples("a.faa", tmp_path / "there") == {"a": (Path("a.faa"),)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name\tpath\nx\ta.faa\n", ["lacks the column sample"]),
        ("sample\tpath\n", ["has no rows"]),
        ("sample\tpath\nx\t\n", ["line 2", "both"]),
        ("sample\tpath\nx\tmissing.faa\n", ["missing.faa", "does not exist"]),
        ("sample\tpath\na/b\tmissing.faa\n", ["'a/b'", "folder's name"]),
    ],
)
def test_a_wrong_samples_table_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    table = tmp_path / "samples.tsv"
    table.write_text(text)
    with pytest.raises(UserError) as error:
        find_samples(str(table), tmp_path)
    assert [word for word in words if word not in str(error.value)] == []


def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.faa").write_text(">a\nM\n")
    with pytest.raises(UserError, match="both be sample 'a'"):
        find_samples([str(tmp_path / "x/a.faa"), str(tmp_path / "y/a.faa")], tmp_path)


@pytest.mark.parametrize(
    ("file", "name"),
    [("d/a.faa", "a"), ("a.b.fasta.gz", "a.b"), ("A.FAA", "A"), ("plain", "plain"), (".faa", ".faa"), ("x.gz", "x")],
)
def test_sample_names(file: str, name: str) -> None:
    assert sample_name(file) == name
