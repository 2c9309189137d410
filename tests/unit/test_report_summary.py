"""The closing text and the table: right sums, and nothing that a reader must know left unsaid."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import pytest

from tests.unit.report_cases import chunk, write_report
from virnucpro.base.errors import UserError
from virnucpro.base.text import duration
from virnucpro.models.esm2.sizes import DEMO_WARNING
from virnucpro.report.summary import summarise


def summary(folder: Path, *reports: Path) -> tuple[dict[str, dict[str, str]], str]:
    """The table's rows by sample, and the text with its folded lines joined."""
    table, text = folder / "summary.tsv", folder / "summary.txt"
    summarise(reports, table, text, folder / "chunks.tsv", logger=logging.getLogger(__name__))
    with table.open(newline="") as file:
        rows = {row["sample"]: row for row in csv.DictReader(file, delimiter="\t")}
    return rows, re.sub(r"\n {13}", " ", text.read_text())


def test_sums_over_chunks_and_samples(tmp_path: Path) -> None:
    one = write_report(tmp_path, "one", [chunk(0), chunk(1, tokens=3000, seconds=1.0, padding_avoided=0.25)], unique=15)
    two = write_report(tmp_path, "two", [chunk(0, peak_memory_bytes=5 << 30, out_of_memory_retries=2)], longest=2000)
    rows, text = summary(tmp_path, one, two)
    assert list(rows) == ["one", "two", "(all)"]
    assert rows["one"]["tokens"] == "4000"
    assert rows["one"]["tokens_per_second"] == "1333"
    # 1000 tokens in 2000 places and 3000 in 4000: 4000 of 6000 places.
    assert float(rows["one"]["padding_avoided_percent"]) == pytest.approx(100 / 3, rel=1e-3)
    everything = rows["(all)"]
    assert everything["proteins"] == "30"
    assert everything["unique_proteins"] == "25"
    assert everything["longest_residues"] == "2000"
    assert float(everything["job_seconds"]) == 5
    assert float(everything["peak_memory_gib"]) == 5
    assert everything["out_of_memory_retries"] == "2"
    assert everything["notes"] == ""
    assert "NOTE" not in text
    assert " ".join(text.split()).startswith(
        "Embedded 30 proteins (25 different) of 2 samples, 2,940 residues, with esm2_t36_3B_UR50D."
    )
    assert "1,000 tokens/s" in text
    assert "5 proteins had the sequence of another one" in text
    assert "memory ran out 2 times" in text
    for sample in ("one", "two"):
        assert str(tmp_path / sample / "embeddings.parquet") in text


def test_two_kinds_of_attention_are_said_in_text_and_table(tmp_path: Path) -> None:
    old = {"attention": "standard_attention", "attention_kernel": "efficient", "device": "Tesla T4"}
    report = write_report(tmp_path, "mixed", [chunk(0), chunk(1), chunk(2, **old)])
    rows, text = summary(tmp_path, report)
    for said in (text, rows["mixed"]["notes"], rows["(all)"]["notes"]):
        assert "more than one kind of attention" in said
        assert "flash_attention_2 on NVIDIA H200 (2 chunks)" in said
        assert "standard_attention on Tesla T4 (1 chunk)" in said
    assert rows["mixed"]["attention"] == "flash_attention_2 (varlen_attn), standard_attention (efficient)"


def test_two_kinds_across_samples_are_said_of_the_run_alone(tmp_path: Path) -> None:
    one = write_report(tmp_path, "one", [chunk(0)])
    two = write_report(tmp_path, "two", [chunk(0, attention="standard_attention", attention_kernel="runs")])
    rows, text = summary(tmp_path, one, two)
    assert rows["one"]["notes"] == rows["two"]["notes"] == ""
    assert "more than one kind of attention" in rows["(all)"]["notes"]
    assert "more than one kind of attention" in text


def test_devices_of_two_kinds_and_two_number_formats(tmp_path: Path) -> None:
    report = write_report(
        tmp_path, "s", [chunk(0), chunk(1, device="NVIDIA A100", precisions=["bfloat16"])], precisions={"float16": 10}
    )
    _, text = summary(tmp_path, report)
    assert "more than one kind of device: NVIDIA H200 (1 chunk), NVIDIA A100 (1 chunk)" in text
    assert "more than one number format: float16 (1 chunk), bfloat16 (1 chunk)" in text


def test_the_demo_model_is_said_to_mean_nothing(tmp_path: Path) -> None:
    report = write_report(tmp_path, "s", [chunk(0)], model="esm2_demo", warning=DEMO_WARNING)
    rows, text = summary(tmp_path, report)
    assert DEMO_WARNING in text
    assert DEMO_WARNING in rows["s"]["notes"]


def test_what_was_done_to_sequences(tmp_path: Path) -> None:
    counts = {"replaced": 7, "replaced_records": 2, "windowed": 1, "truncated": 3}
    rows, text = summary(
        tmp_path, write_report(tmp_path, "s", [chunk(0, recomputed=3), chunk(1, recomputed=1)], **counts)
    )
    assert "7 residues of 2 proteins without a token of their own ('*' inside, J) became X" in text
    assert "1 protein over 1,022 residues ran in overlapping windows" in text
    assert "3 proteins over 1,022 residues lost what is beyond" in text
    assert "4 proteins overflowed in half precision" in text
    columns = ("replaced_residues", "windowed_proteins", "truncated_proteins", "recomputed_proteins")
    assert [rows["s"][name] for name in columns] == ["7", "1", "3", "4"]


def test_a_damaged_report_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    good = write_report(tmp_path, "good", [chunk(0)])
    for content in ("{", "[]", "{}", '{"model": "x"}'):
        bad = tmp_path / "bad" / "embeddings.json"
        bad.parent.mkdir(exist_ok=True)
        bad.write_text(content)
        with pytest.raises(UserError, match=r"bad/embeddings\.json"):
            summary(tmp_path, good, bad)
    assert not list(tmp_path.glob("*summary*"))


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (125, "2 min 5 s"), (12000, "3 h 20 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
