"""Samples in every form in which they may be given, and one sentence for each that cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from virnucpro.base.errors import UserError
from virnucpro.samples import COMPRESSION_ENDINGS, OURS, find_samples, sample_name

ROOT = Path(__file__).parents[2]


def write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(">a\nM\n")


def sentence(samples: Any, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        find_samples(samples, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_samples_in_every_form(tmp_path: Path) -> None:
    one, two, comma = tmp_path / "one.faa", tmp_path / "two.fasta.gz", tmp_path / "a,b.faa"
    write(one, two, comma)
    expected = {"one": (one,), "two": (two,)}
    assert find_samples(str(one)) == {"one": (one,)}
    assert find_samples(f"{one}, {two}") == expected
    assert find_samples([str(one), str(two)]) == expected
    assert find_samples({"x": str(one), "y": [str(one), str(two)]}) == {"x": (one,), "y": (one, two)}
    assert find_samples({"x": str(comma)}) == {"x": (comma,)}
    assert "'a,b'" in sentence(str(comma))


def test_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b.faa", "a.fasta.gz", "c.fna.xz", "d.fa.bz2", "e.pep.zst", "sub/f.faa", "[g].faa"]
    write(*(tmp_path / "in" / name for name in names))
    (tmp_path / "in" / "notes.txt").write_text("notes")
    (tmp_path / "in" / ".hidden.faa").write_text("")
    monkeypatch.chdir(tmp_path)
    found = find_samples({"all": "in"})["all"]
    assert [path.name for path in found] == ["[g].faa", "a.fasta.gz", "b.faa", "c.fna.xz", "d.fa.bz2", "e.pep.zst"]
    assert list(find_samples({"x": "in"} | {"y": "in/b.faa"})) == ["x", "y"]
    assert find_samples("in/[ab].fa*") == {"a": (Path("in/a.fasta.gz"),), "b": (Path("in/b.faa"),)}
    assert find_samples("in/**/f.faa") == {"f": (Path("in/sub/f.faa"),)}
    assert find_samples({"g": "in/[g].faa"}) == {"g": (Path("in/[g].faa"),)}  # a file is a file before it is a pattern
    assert list(find_samples("in/[a-e].*")) == ["a", "b", "c", "d", "e"]
    (tmp_path / "in/samples.csv").write_text("sample,path\nx,*.faa\n")
    assert find_samples("in/samples.csv") == {"x": (Path("in/[g].faa"), Path("in/b.faa"))}
    (tmp_path / "empty").mkdir()
    assert "without FASTA files" in sentence("empty")
    assert "in/*.fastq does not exist" in sentence("in/*.fastq")


HEADERS = ["sample\tpath", "sample,path", "sample;path", "Sample,Path", " SAMPLE ; Path ;note", '"sample","path"']


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_tables_as_people_save_them(
    header: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "ä b.faa", tmp_path / "data" / "y,1.faa")
    separator = next(sign for sign in "\t,;" if sign in header)
    rows = [("007", "ä b.faa"), ("no", "ä b.faa"), ("no", '"y,1.faa"')]
    lines = ["# my samples", "", header, *(separator.join(row) for row in rows), "# the end", separator, ""]
    table = tmp_path / "data" / "samples.csv"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    table.write_bytes(mark + "\r\n".join(lines).encode(encoding))
    monkeypatch.chdir(tmp_path)
    first, second = Path("data/ä b.faa"), Path("data/y,1.faa")
    assert find_samples("data/samples.csv") == {"007": (first,), "no": (first, second)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["lacks the column sample and path"]),
        (b"name\tpath\nx\ta.faa\n", ["lacks the column sample"]),
        (b"sample\tpath\tpath\nx\ta.faa\tb.faa\n", ["path", "once"]),
        (b"sample\tpath\n", ["has no rows"]),
        (b"sample\tpath\nx\t\n", ["line 2", "both"]),
        (b"sample\tpath\nx\tmissing.faa\n", ["line 2", "missing.faa", "does not exist"]),
        (b"sample\tpath\na/b\tmissing.faa\n", ["line 2", "'a/b'", "folder's name"]),
        (b"sample,path\nx,a,b.faa\n", ["line 2", "3 cells", "quotes"]),
        ("sample\tpath\nx\tmüller.faa\n".encode("cp1252"), ["line 2", "UTF-8"]),
        ("sample\tpath\nx\ta.faa\n".encode("utf-16-le"), ["zero bytes", "UTF-8"]),
        (b"sample\tpath\nlogs\ta.faa\n", ["line 2", "'logs'", "ours"]),
    ],
)
def test_a_wrong_table_is_named(text: bytes, words: list[str], tmp_path: Path) -> None:
    table = tmp_path / "samples.tsv"
    table.write_bytes(text)
    said = sentence(str(table))
    assert [word for word in ["samples.tsv", *words] if word not in said] == [], said


def test_a_relative_path_is_in_the_working_folder_or_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here / "both.faa", there / "both.faa", there / "a.faa", here / "b.faa")
    monkeypatch.chdir(here)
    assert find_samples("a.faa", there) == {"a": (there / "a.faa",)}
    assert find_samples("b.faa", there) == {"b": (Path("b.faa"),)}
    assert "does not exist" in sentence("a.faa")
    assert find_samples("both.faa", there) == {"both": (Path("both.faa"),)}, "files of one content: nothing to choose"
    (there / "both.faa").write_text(">a\nK\n")
    said = sentence("both.faa", there)
    assert "both in the working folder and in" in said
    assert "whole path" in said
    (there / "both.faa").unlink()
    (there / "both.faa").symlink_to(here / "both.faa")  # one file, so nothing to choose
    assert find_samples("both.faa", there) == {"both": (Path("both.faa"),)}


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], ["'samples'", "[]", "FASTA"]),
        ({}, ["'samples'", "{}"]),
        ("", ["'samples'", "''"]),
        (" , ", ["'samples'"]),
        (7, ["'samples'", "7", "quotes"]),
        ([7], ["'samples'", "[7]", "quotes"]),
        ({"x": None}, ["'samples'", "None"]),
        ({"x": []}, ["'samples'", "[]"]),
        ({"x": {"y": "a.faa"}}, ["'samples'", "can't be"]),
        ({7: "a.faa"}, ["sample name 7", "quotes"]),
        ({"a b": "{file}"}, ["'a b'", "folder's name"]),
        ({"..": "{file}"}, ["'..'"]),
        ({"x" * 201: "{file}"}, ["at most 200"]),
        ("*" * 400 + ".nothing", ["longer than"]),
        ("q/" * 300 + "x.faa", ["does not exist", "..."]),
        ({"GPU.json": "{file}"}, ["'GPU.json'", "ours"]),
        ("missing.faa", ["missing.faa", "does not exist"]),
        ("/dev/null", ["/dev/null", "neither a file nor a folder"]),
        ("table.xlsx", ["table.xlsx", "spreadsheet"]),
        ("~nouser/a.faa", ["~nouser", "does not exist"]),
        ("a" * 300, ["longer than a file system takes"]),
    ],
)
def test_samples_that_cannot_be(samples: Any, words: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.faa")
    if isinstance(samples, dict):
        samples = {k: str(tmp_path / "a.faa") if v == "{file}" else v for k, v in samples.items()}
    said = sentence(samples)
    assert [word for word in words if word not in said] == [], said


def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "x/a.faa", tmp_path / "y/a.faa")
    assert "both be sample 'a'" in sentence([str(tmp_path / "x/a.faa"), str(tmp_path / "y/a.faa")])


def test_a_folder_with_a_name_that_would_forge_a_line_of_the_log(tmp_path: Path) -> None:
    write(tmp_path / "n\nERROR.faa")
    assert "control characters" in sentence({"x": str(tmp_path)})


@pytest.mark.parametrize("name", ["we{ird}.faa", "<x>.faa"])
def test_names_that_are_patterns_to_snakemake(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    said = sentence({"x": str(tmp_path / name)})
    assert name in said
    assert "Snakemake" in said


def test_names_of_ours_are_all_that_rules_write_beside_the_samples() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    beside = {name for name in re.findall(r'run\.results / "([^"/]+)"', rules) if "{" not in name}
    beside |= {f"summary{ending}" for ending in re.findall(r'SUMMARY\.with_suffix\("([^"]+)"\)', rules)}
    assert beside >= {"summary.tsv", "summary.json"}
    assert {"summary.tsv", "gpu.json", "logs", "plots", "summary.html"} <= beside
    assert beside <= set(OURS)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(
            ("d/a.faa", "a"),
            ("a.b.fasta.gz", "a.b"),
            ("A.FAA", "A"),
            ("plain", "plain"),
            (".faa", ".faa"),
            ("x.gz", "x"),
        ),
        *((f"a.faa{ending}", "a") for ending in COMPRESSION_ENDINGS),
    ],
)
def test_sample_names(file: str, name: str) -> None:
    assert sample_name(file) == name
