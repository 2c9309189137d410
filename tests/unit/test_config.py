"""The configuration: defaults, what may be said and how, and one sentence for each mistake."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from virnucpro.base.errors import UserError
from virnucpro.base.settings import LONGEST, SETTINGS, EmbeddingSettings, LongProteins, TableSettings
from virnucpro.calling.state import CallRule
from virnucpro.config import GROUPS, RunConfig, json_schema, load_config, merged, schema_text
from virnucpro.config_files import Source, read_arguments, read_file
from virnucpro.models.reference import ModelRef, planning_architecture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    path = tmp_path / "my.proteins.faa"
    path.write_text(">a\nMKV\n")
    return str(path)


def load(given: dict[str, Any]) -> RunConfig:
    return load_config(Source("a test", given))


def from_text(text: str, folder: Path) -> RunConfig:
    (folder / "config.yaml").write_text(text)
    return load_config(Source("config.yaml", read_file(folder / "config.yaml"), folder))


def sentence(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_setting_has_a_sentence_and_a_default_that_it_allows() -> None:
    for key, setting in SETTINGS.items():
        assert setting.about.endswith("."), key
        assert setting.check(setting.default) == setting.default
        assert key.partition(".")[0] in GROUPS or "." not in key


def test_the_schema_file_is_the_one_that_the_settings_give() -> None:
    assert (ROOT / "workflow/schemas/config.schema.yaml").read_text() == schema_text(), "python -m virnucpro.config"
    Draft202012Validator.check_schema(json_schema())


def test_the_shipped_config_gives_the_defaults_and_names_every_key(fasta: str) -> None:
    shipped = read_file(ROOT / "config.yaml")
    assert load({**shipped, "samples": fasta}) == load({"samples": fasta})
    named = {f"{key}.{name}" for key in GROUPS for name in shipped[key]} | (shipped.keys() - GROUPS.keys())
    assert named == SETTINGS.keys()
    Draft202012Validator(json_schema()).validate(yaml.safe_load((ROOT / "config.yaml").read_text()))


def test_defaults_are_those_of_virnucpro(fasta: str) -> None:
    run = load({"samples": fasta})
    assert run.model == ModelRef("esm2_t36_3B_UR50D")
    assert run.embedding == EmbeddingSettings(("last",), ("mean",), "auto", LongProteins("window", 1022, 511))
    assert run.tables == TableSettings(("parquet",), "float32", 10_000)
    assert run.samples == {"my.proteins": (Path(fasta),)}
    assert run.chunk_size.residues == 20_000_000


def test_nested_defaults_are_filled_one_by_one(fasta: str) -> None:
    assert load({"samples": fasta, "long_proteins": {"policy": "full"}}).embedding.long_proteins == LongProteins("full")


def test_text_of_digits_is_a_number_where_a_number_is_meant(fasta: str) -> None:
    run = load({"samples": fasta, "layers": ["0", "-1", "last"], "long_proteins": {"longest": "500", "overlap": "20"}})
    assert run.embedding.layers == (0, -1, "last")
    assert run.embedding.long_proteins == LongProteins("window", 500, 20)
    assert load({"samples": fasta, "chunk_residues": "20_000_000"}).chunk_size.residues == 20_000_000


def test_one_stands_for_a_list_of_one(fasta: str) -> None:
    run = load({"samples": fasta, "pooling": "per_residue", "layers": 3, "merge": {"formats": "hdf5"}})
    assert (run.embedding.pooling, run.embedding.layers, run.tables.formats) == (("per_residue",), (3,), ("hdf5",))
    assert EmbeddingSettings(pooling="mean", layers=-1) == EmbeddingSettings((-1,), ("mean",))  # type: ignore[arg-type]
    assert EmbeddingSettings(long_proteins="full") == EmbeddingSettings(long_proteins=LongProteins("full"))  # type: ignore[arg-type]


def test_chunks_are_smaller_when_every_residue_is_kept(fasta: str) -> None:
    run = load({"samples": fasta, "pooling": ["mean", "per_residue"], "layers": [33, 36]})
    assert run.chunk_size.residues == 50_000_000_000 // (2560 * 4 * 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modle": "esm2_demo"}, ["'modle'", "did you mean 'model'", "(a test)"]),
        ({"zebra": 1}, ["'zebra'", "known are samples"]),
        ({7: "x"}, ["setting 7 is not known"]),
        ({"long_proteins.policy": "full"}, ["'long_proteins.policy'", "not known"]),
        ({"long_proteins": {"polcy": "full"}}, ["'polcy'", "long_proteins", "'policy'"]),
        ({"long_proteins": "full"}, ["'long_proteins'", "'full'", "mapping of policy, longest, overlap"]),
        ({"model": "esm2_t36"}, ["esm2_t36", "esm2_t36_3B_UR50D", "org/name"]),
        ({"model": "esm2_dem"}, ["did you mean esm2_demo?"]),
        ({"layers": "first"}, ["'layers'", "'first'", "last or a whole number"]),
        ({"layers": 3.0}, ["'layers'", "3.0", "whole number"]),
        ({"layers": [3.5]}, ["'layers'", "3.5", "whole number"]),
        ({"layers": "010"}, ["'layers'", "'010'"]),
        ({"layers": True}, ["'layers'", "True"]),
        ({"layers": 37}, ["layer 37", "36 layers"]),
        ({"pooling": "sum"}, ["'pooling'", "'sum'", "mean, bos, max, per_residue"]),
        ({"pooling": ["mean", "mean"]}, ["'pooling'", "twice"]),
        ({"precision": "fp8000"}, ["'precision'", "fp16"]),
        ({"precision": None}, ["'precision'", "no value"]),
        ({"chunk_residues": 0}, ["'chunk_residues'", "0"]),
        ({"chunk_residues": "1e5"}, ["'chunk_residues'", "'1e5'", "whole number"]),
        ({"chunk_residues": 2**64}, ["'chunk_residues'", str(2**64)]),
        ({"chunk_residues": "9" * 5000}, ["'chunk_residues'", "whole number"]),
        ({"gpus_per_job": -(2**70)}, ["'gpus_per_job'", "0 or more"]),
        ({"long_proteins": {"longest": 100, "overlap": 100}}, ["overlap", "less than", "100"]),
        ({"merge": {"formats": ["csv"]}}, ["'merge.formats'", "csv", "parquet"]),
        ({"merge": {"formats": []}}, ["'merge.formats'", "[]"]),
        ({"merge": {"formats": ["virnucpro_pt"]}, "pooling": "per_residue"}, ["virnucpro_pt", "mean"]),
        ({"merge": {"formats": ["virnucpro_pt"]}, "layers": [0, "last"]}, ["virnucpro_pt", "one layer"]),
        ({"require_gpu": "yes"}, ["'require_gpu'", "'yes'", "true or false"]),
        ({"require_gpu": "true", "gpus_per_job": 0}, ["'require_gpu'", "'gpus_per_job' is 0"]),
        ({"gpus_per_job": "two"}, ["'gpus_per_job'", "'two'", "whole number"]),
        ({"results": 2024}, ["'results'", "2024", "quotes"]),
        ({"results": False}, ["'results'", "False", "quotes"]),
        ({"results": ""}, ["'results'", "not empty"]),
        ({"results": "a" * 300}, ["'results'", "longer than a file system takes"]),
        ({"resources": "b/" * 3000}, ["'resources'", "longer than a file system takes"]),
        ({"results": "out{x}"}, ["'results'", "out{x}", "Snakemake"]),
        ({"resources": "out<x>"}, ["'resources'", "out<x>", "Snakemake"]),
        ({"results": "~nouser/out"}, ["'results'", "~nouser/out", "user who does not exist"]),
        ({"results": "a\0b"}, ["'results'", "control characters"]),
        ({"results": "a\x1b[2J"}, ["'results'", r"\x1b", "rename"]),
        ({"results": "a\ud800"}, ["'results'", "control characters"]),
        ({"results": "a\nb"}, ["'results'", "control characters"]),
        ({"model": "\ud800.pt"}, ["'model'", "control characters"]),
        ({"results": "/dev/null"}, ["'results'", "/dev/null", "not a folder"]),
        ({"results": "/dev/null/x"}, ["'results'", "/dev/null is a file, not a folder"]),
        ({"results": "a/" * 1600}, ["'results'", "at most 3000 bytes"]),
        ({"results": "out", "resources": "out/GPU.json"}, ["'resources'", "where GPU.json of the results goes"]),
        ({"results": "out", "resources": "x/../out/my.proteins/w"}, ["where my.proteins of the results goes"]),
        ({"model": "~nouser/x.pt"}, ["'model'", "user who does not exist"]),
        ({"model": "/"}, ["/ holds no checkpoint: neither model.safetensors"]),
        ({"model": "/dev/zero"}, ["/dev/zero is no regular file"]),
        ({"model": "c" * 300}, ["unknown model", "esm2_demo"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(given: dict[str, Any], words: list[str], fasta: str) -> None:
    text = sentence(load, {"samples": fasta, **given})
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 600


CALLED = {"input": "nucleotide"}


@pytest.mark.parametrize(
    ("given", "classify", "words"),
    [
        ({}, {"classifier": "classifier_demo"}, ["'input' is protein: set it to nucleotide"]),
        ({**CALLED, "layers": [1, 2]}, {"classifier": "classifier_demo"}, ["set pooling to mean and give one layer"]),
        ({**CALLED, "pooling": "per_residue"}, {"classifier": "classifier_demo"}, ["set pooling to mean"]),
        (CALLED, {"classifier": "none.pth"}, ["'classify.classifier'", "none.pth does not exist"]),
        (CALLED, {"classifier": "{folder}"}, ["'classify.classifier'", "is no file"]),
        (CALLED, {"classifier": "{folder}/300_model.pth"}, ["is the classifier for windows of 300 bases"]),
        ({**CALLED, "nucleotide": {"window": 400}}, {"classifier": "{folder}/x.pth"}, ["give 300 or 500"]),
        (CALLED, {"classifier": "classifier_demo", "nucleotide_model": "esm2_demo"}, ["embeds proteins"]),
        (CALLED, {"classifier": "classifier_demo", "viral_over": "-0.5"}, ["the second no larger"]),
        ({}, {"viral_over": "2"}, ["'classify.viral_over'", "a number from -1 to 1"]),
        ({}, {"sure_over": "nan"}, ["'classify.sure_over'", "a number from 0 to 1"]),
        ({}, {"sure_over": float("nan")}, ["'classify.sure_over'"]),
        ({}, {"sure_over": True}, ["'classify.sure_over'"]),
        ({}, {"classifier": False}, ["'classify.classifier'", "quotes"]),
    ],
)
def test_what_keeps_contigs_from_being_called_is_said_before_anything_runs(
    given: dict[str, Any], classify: dict[str, Any], words: list[str], fasta: str, tmp_path: Path
) -> None:
    for name in ("300_model.pth", "x.pth"):
        (tmp_path / name).write_bytes(b"")
    classify = {
        name: value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in classify.items()
    }
    text = sentence(load, {"samples": fasta, "model": "esm2_demo", **given, "classify": classify})
    assert [word for word in words if word not in text] == [], text


def test_calls_are_off_by_default_and_take_the_settings_of_the_run(fasta: str) -> None:
    assert load({"samples": fasta}).calls is None
    given = {"classifier": "classifier_demo", "viral_over": "0.5", "non_viral_under": -1}
    calls = load({"samples": fasta, **CALLED, "precision": "int8", "classify": given}).calls
    assert calls is not None
    assert calls.rule == CallRule(viral_over=0.5, non_viral_under=-1.0)
    assert calls.embedding == EmbeddingSettings(precision="auto", long_proteins=LongProteins("full"))
    assert calls.model == ModelRef("dnabert_s")
    assert (calls.chunk_sizes["gpu"].residues, calls.chunk_sizes["cpu"].residues) == (200_000_000, 2_100_000)


@pytest.mark.parametrize("name", ["my{x}.pt", "my<x>.pt"])
def test_a_checkpoint_whose_name_is_a_pattern_to_snakemake(name: str, tmp_path: Path, fasta: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "patterns to Snakemake: rename it" in sentence(load, {"samples": fasta, "model": str(tmp_path / name)})
    assert ModelRef.of(tmp_path / name).path == tmp_path / name  # outside of Snakemake it is a name like another


def test_a_home_folder_is_found_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.faa", "b.faa", "best.pt"):
        (tmp_path / name).write_text(">a\nMKV\n")
    (tmp_path / "samples.tsv").write_text("sample\tpath\nx\t~/b.faa\n")
    paths = {"results": "~/out", "resources": "~/res", "model": "~/best.pt"}
    run = load({"samples": "~/a.faa", **paths})
    assert (run.results, run.resources) == (tmp_path / "out", tmp_path / "res")
    assert run.model == ModelRef("best", tmp_path / "best.pt")
    assert run.samples == {"a": (tmp_path / "a.faa",)}
    assert load({"samples": "~/samples.tsv", **paths}).samples == {"x": (tmp_path / "b.faa",)}


def test_a_model_is_a_known_name_or_else_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mymodel", "esm2_t6_8M_UR50D.pt", "esm2_demo"):
        (tmp_path / name).write_bytes(b"")
    assert ModelRef.of("mymodel") == ModelRef("mymodel", Path("mymodel"))
    assert ModelRef.of("esm2_demo") == ModelRef("esm2_demo")
    assert ModelRef.of("./esm2_demo").path == Path("esm2_demo")
    assert planning_architecture(ModelRef.of("esm2_t6_8M_UR50D.pt")).layers == 6
    assert planning_architecture(ModelRef.of("mymodel")).layers == 36


YAML_TRAPS = {
    "007": "a.faa", "010": "b.faa", "no": "c.faa", "12_34": "d.faa", "1e5": "e.faa", "7": "g.faa", "8": "h.faa",
    "0o7": "i.faa", "1.0": "j.faa", "2024-01-01": "k.faa", "False": "l.faa", "+7": "m.faa", "null_": "n.faa",
}  # fmt: skip


def test_names_stay_as_they_stand_in_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    for file in YAML_TRAPS.values():
        (tmp_path / file).write_text(">a\nMKV\n")
    samples = "".join(f"  {name}: {file}\n" for name, file in YAML_TRAPS.items())
    run = from_text(
        f"samples:\n{samples}results: 2024\nresources: 007\nlayers: [3, 7]\nchunk_residues: 1000\n", tmp_path
    )
    assert run.samples == {name: (tmp_path / file,) for name, file in YAML_TRAPS.items()}
    assert (run.results, run.resources) == (Path("2024"), Path("007"))
    assert (run.embedding.layers, run.chunk_size.residues) == ((3, 7), 1000)
    given = read_arguments(["samples={" + ", ".join(f"{k}: {v}" for k, v in YAML_TRAPS.items()) + "}", "results=010"])
    run = load_config(Source("--config", given, tmp_path))
    assert run.samples == {name: (tmp_path / file,) for name, file in YAML_TRAPS.items()}
    assert run.results == Path("010")
    # A time is a number to YAML too; it cannot be a folder's name, and is refused as it was written.
    assert "'12:30'" in sentence(from_text, "samples: {12:30: a.faa}\n", tmp_path)


def test_values_that_yaml_has_changed_already_are_refused(fasta: str) -> None:
    """A module's config comes from another workflow, which has read its file by itself."""
    for name in (7, False, 1e5, None):
        text = sentence(load, {"samples": {name: fasta}})
        assert "put it in quotes" in text
        assert repr(name) in text


MERGE_BOMB = "b0: &b0 {x: 1}\n" + "".join(
    f"b{level}: &b{level} {{<<: [{', '.join([f'*b{level - 1}'] * 9)}]}}\n" for level in range(1, 13)
)
"""A kilobyte that stands for 9^12 mappings."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("results: a\nresults: b\n", ["'results'", "twice", "line 2"]),
        ("samples: {a: x.faa, a: y.faa}\n", ["'a'", "twice"]),
        ("- a\n- b\n", ["key: value", "['a', 'b']"]),
        ("just words\n", ["key: value", "'just words'"]),
        ("results: [a\n", ["is not right", "line"]),
        ("a: b: c\n", ["is not right", "line 1"]),
        ("results: \tx\n\tlayers: 3\n", ["is not right", "line"]),
        ("&a [*a]\n", ["refers to itself", "line 1"]),
        ("long_proteins: &a {policy: *a}\n", ["refers to itself"]),
        ("&a\n<<: *a\nresults: x\n", ["refers to itself"]),
        (MERGE_BOMB, ["repeated too often"]),
        (MERGE_BOMB.replace("{<<: [", "[").replace("]}", "]"), ["repeated too often"]),
        ("a: 1\n---\nb: 2\n", ["expected a single document", "another document", "line 2"]),
        ("a: &x 1\nb: &x 2\n", ["duplicate anchor 'x'", "second occurrence", "line 2"]),
        ("#" * (17 << 20), ["larger than settings ever are (16 MiB)"]),
        ("results: !secret x\n", ["is not right", "!secret"]),
        ("results:\n", ["'results'", "no value"]),
        ("{x: " * 3000, ["nested too deeply"]),
        ("__use_yte__: true\n", ["'__use_yte__'", "not known"]),
    ],
)
def test_a_wrong_file_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    said = sentence(from_text, text, tmp_path)
    assert [word for word in ["config.yaml", *words] if word not in said] == [], said


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"results: caf\xe9\n")
    assert "UTF-8" in sentence(read_file, tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes("results: café\n".encode("utf-16"))
    assert read_file(tmp_path / "config.yaml") == {"results": "café"}
    assert "cannot be read" in sentence(read_file, tmp_path)


def test_an_empty_file_gives_nothing_and_json_is_read_too(tmp_path: Path) -> None:
    for text in ("", "# a comment\n", "---\n"):
        (tmp_path / "c.yaml").write_text(text)
        assert read_file(tmp_path / "c.yaml") == {}
    (tmp_path / "c.json").write_text('{"samples": {"007": "a.faa"},\t"layers": 3}')
    assert read_file(tmp_path / "c.json") == {"samples": {"007": "a.faa"}, "layers": "3"}
    (tmp_path / "c.json").write_text('{"layers": 3, "layers": 4}')
    assert "'layers' is there twice" in sentence(read_file, tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{")
    assert "c.json is not right" in sentence(read_file, tmp_path / "c.json")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("results=2024", "2024"),
        ("results=no", "no"),
        ("results=a #1", "a #1"),
        ("results=~/x", "~/x"),
        ("results='007'", "007"),
        ("results=a=b", "a=b"),
        ("results=", None),
        ("results=[1, 02]", ["1", "02"]),
        ("results={a: {b: no}}", {"a": {"b": "no"}}),
        ("results=a: b", {"a": "b"}),
        ("results=it's", "it's"),
        ("results=*.faa", "*.faa"),
        ("results=%x", "%x"),
    ],
)
def test_values_on_the_command_line(entry: str, value: object) -> None:
    assert read_arguments([entry]) == {"results": value}


def test_a_wrong_mapping_on_the_command_line() -> None:
    assert "'a' is there twice" in sentence(read_arguments, ["samples={a: x, a: y}"])
    assert "samples" in sentence(read_arguments, ["samples={a: x"])


def test_a_later_source_wins_setting_by_setting(tmp_path: Path, fasta: str) -> None:
    sources = (
        Source("one", {"samples": {"x": fasta}, "merge": {"formats": ["npy"], "dtype": "float16"}}, tmp_path),
        Source("two", {"samples": {"y": fasta}, "merge": {"formats": ["hdf5"]}}, tmp_path),
    )
    run = load_config(*sources)
    assert list(run.samples) == ["y"]
    assert run.tables == TableSettings(("hdf5",), "float16")
    assert merged(sources)["merge"] == {"formats": ["hdf5"], "dtype": "float16"}


# No fact twice: what a setting may be, and its default, stand in base/settings.py alone.

ELSEWHERE = {
    # What each word does is said where it is done; the test below compares the words.
    ("virnucpro/models/precision.py", "DTYPES"): set(SETTINGS["precision"].words) - {"auto"},
    ("virnucpro/storage/tables/__init__.py", "TABLES"): set(SETTINGS["merge.formats"].words),
    ("virnucpro/report/sample.py", "LONG_POLICIES"): set(SETTINGS["long_proteins.policy"].words),
}
NUMBERS = (str(LONGEST), str(LONGEST // 2))


def literals(tree: ast.AST) -> Iterator[tuple[ast.AST, set[object]]]:
    """Constants that stand together: elements of a list, tuple or set, keys of a dict."""
    for node in ast.walk(tree):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        yield node, {part.value for part in parts if isinstance(part, ast.Constant)}


def stated_again(text: str, path: str = "") -> list[str]:
    tree = ast.parse(text)
    named = {node.value: node.targets[0].id for node in ast.walk(tree)
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
    asked = {side for node in ast.walk(tree) if isinstance(node, ast.Compare) for side in node.comparators}
    found = []
    for node, values in literals(tree):
        allowed_here = ELSEWHERE.get((path, named.get(node, "")))  # type: ignore[call-overload]
        if allowed_here is not None:
            assert values == allowed_here, f"{path} does not know what the setting may be"
            continue
        for key, setting in SETTINGS.items():
            shared = values & set(setting.words)
            if node in asked and shared != set(setting.words):
                continue  # whether it is one of some of them
            if len(shared) > max(1, len(values - shared)):  # float16 and float32 stand among other names of torch's
                found.append(f"{path}:{getattr(node, 'lineno', 0)}: words of {key}")
    written = tokenize.generate_tokens(io.StringIO(text).readline)
    return found + [f"{path}:{token.start[0]}: {token.string}" for token in written if token.string in NUMBERS]


def test_nothing_of_a_setting_is_stated_twice() -> None:
    found = []
    for path in sorted([*(ROOT / "virnucpro").rglob("*.py"), *(ROOT / "workflow/scripts").glob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if name not in ("virnucpro/base/settings.py", "virnucpro/base/settings.py"):
            found += stated_again(path.read_text(encoding="utf-8"), name)
    assert found == []
    assert stated_again('A = ["mean", "per_residue"]\ndef f(longest=1022): ...') == [":1: words of pooling", ":2: 1022"]


def test_the_configuration_needs_neither_numpy_nor_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, json; sys.modules |= dict.fromkeys(('numpy', 'torch', 'pandas', 'pyarrow'));"
        "import virnucpro.config, virnucpro.config_files, virnucpro.cli; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "virnucpro.samples" in json.loads(done.stdout)
    # And the package in Python needs no YAML.
    code = "import sys; sys.modules['yaml'] = None; import virnucpro.api"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
