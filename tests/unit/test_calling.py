"""Calls equal VirNucPro's procedure, restated plainly, and its faults are not repeated."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.calling_cases import (
    BASES_WIDTH,
    PROTEIN_WIDTH,
    MLPClassifier,
    column,
    contigs,
    frames_of,
    original,
    save_as_main,
    save_features,
    table,
    trained,
)
from virnucpro.base.errors import UserError
from virnucpro.base.settings import InputPolicies
from virnucpro.calling.classifier import demo_classifier
from virnucpro.calling.classifier_file import read_classifier
from virnucpro.calling.contigs import classify, contig_calls, window_scores
from virnucpro.calling.features import Features, feature_files
from virnucpro.calling.frames import Contig, Frames
from virnucpro.calling.state import CallRule
from virnucpro.cli import main


def stub_frames(scores: list[list[tuple[float, float]]]) -> Frames:
    """One frame a window, windows of 300 bases side by side, a list of scores a contig."""
    places = [(row, window) for row, own in enumerate(scores) for window in range(1, len(own) + 1)]
    contig, window = np.array(places, np.int64).T
    start, end = 300 * (window - 1), 300 * window
    named = [Contig(f"c{row}", 300 * len(own), len(own), "") for row, own in enumerate(scores)]
    both = np.array([pair for own in scores for pair in own], np.float32)
    ids = [f"c{row}_chunk_{number}F1" for row, number in places]
    return Frames(named, ids, contig, window, np.zeros_like(contig), start, end, start, end, both)


def test_frames_windows_and_calls_are_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fasta = contigs(tmp_path / "my.fasta_files.fna")
    model = trained()
    save_features(tmp_path / "nucleotide.fa", fasta)
    scores, windows = original(model, fasta)
    path = save_as_main(model, tmp_path / "300_model.pth", monkeypatch)
    files = [str(tmp_path / "nucleotide.fa"), "--classifier", str(path), "--window", "300"]
    main(["classify", str(fasta), "-o", str(tmp_path / "calls"), "--features", *files])
    out = tmp_path / "calls"

    frames = table(out / "prediction_results.txt")
    assert column(frames, "Sequence_ID") == list(scores)
    ours = np.array([[float(row["score1"]), float(row["score2"])] for row in frames])
    assert np.abs(ours - np.array(list(scores.values()))).max() < 1e-5
    assert column(frames, "Prediction") == [("others", "virus")[b > a] for a, b in scores.values()]
    assert {"virus", "others"} == set(column(frames, "Prediction"))
    merged = table(out / "prediction_results_highestscore.csv")
    assert [(row["Modified_ID"], row["Is_Virus"]) for row in merged] == sorted(
        (window, str(is_virus)) for window, is_virus in windows.items()
    )
    calls = table(out / "contigs.tsv")
    assert column(calls, "contig") == [f"contig_{i}" for i in range(4)] + ["a_chunk_1", "silent"]
    assert calls[-1]["call"] == "unscored"
    assert calls[-1]["reason"] == "no stop-free frame"
    viral = [row["contig"] for row in calls if row["call"] == "viral"]
    assert [line[1:] for line in (out / "viral_contigs.fasta").read_text().split() if line[0] == ">"] == viral
    detailed = pq.read_table(out / "frames.parquet").to_pylist()
    assert [row["id"] for row in detailed] == list(scores)
    whole = {name.split()[0]: text for name, text in zip(*[iter(fasta.read_text().split("\n"))] * 2, strict=False)}
    for row, (_, bases) in zip(detailed, frames_of(fasta)[1], strict=True):
        place = whole[">" + row["contig"]][row["start"] : row["end"]]
        strand = place if row["strand"] == "+" else place[::-1].translate(str.maketrans("ACGT", "TGCA"))
        assert bases.startswith(strand), row  # VirNucPro keeps one base more where there is one
        assert len(bases) - len(strand) in (0, 1)

    before = {file.name: file.read_bytes() for file in out.iterdir()}
    main(["classify", str(fasta), "-o", str(out), "--features", *files])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, list[Path]]:
    fasta = contigs(tmp_path / "in.fna")
    return fasta, save_features(tmp_path / "features", fasta)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def run(fasta: Path, paths: list[Path], out: Path, *, window: int = 300) -> None:
    features = Features(paths)
    classify([fasta], features, demo_classifier(features.width), out, window=window)


def without_first(content: dict[str, Any]) -> None:
    content["proteins"], content["data"] = content["proteins"][1:], content["data"][1:]


def id_alone(content: dict[str, Any]) -> None:
    content["nucleotide"].pop(0)


def swapped(content: dict[str, Any]) -> None:
    ids = content["nucleotide"]
    ids[0], ids[1] = ids[1], ids[0]


def not_a_number(content: dict[str, Any]) -> None:
    content["data"][2][0] = float("nan")


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (1, without_first, "have no ESM-2 features"),
        (0, id_alone, "20 rows"),
        (0, swapped, "is labelled"),
        (1, not_a_number, "are no numbers"),
        (0, dict.clear, "holds no features"),
    ],
)
def test_rows_that_could_be_anothers_are_refused(
    case: tuple[Path, list[Path]], place: int, change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    edit(case[1][place], change)
    with pytest.raises(UserError, match=words):
        run(*case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_in_any_order_give_the_same_and_stale_or_missing_ones_are_errors(
    case: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    fasta, paths = case
    assert len(paths) > 4
    run(fasta, paths, tmp_path / "a")
    run(fasta, [*paths[::-2], *paths[::2]], tmp_path / "b")
    assert (tmp_path / "a/frames.tsv").read_bytes() == (tmp_path / "b/frames.tsv").read_bytes()
    with pytest.raises(UserError, match="of an earlier run"):
        run(fasta, [*paths, paths[0]], tmp_path / "out")
    with pytest.raises(UserError, match="have no features"):
        run(fasta, paths[:-2], tmp_path / "out")
    with pytest.raises(UserError, match="none of these contigs' with windows of 500 bases"):
        run(fasta, paths, tmp_path / "out", window=500)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="left as it is"):
        run(fasta, paths, tmp_path / "mine")
    names = [f"output_{number}_ESM.pt" for number in (10, 9, 1)]
    for name in names:
        (tmp_path / "mine" / name).write_text("")
    assert [path.name for path in feature_files([tmp_path / "mine"])] == names[::-1]
    with pytest.raises(UserError, match="no features there"):
        feature_files([tmp_path / "none"])


def test_no_frame_at_all_empty_contigs_and_repeated_ids(case: tuple[Path, list[Path]], tmp_path: Path) -> None:
    silent = tmp_path / "silent.fna"
    silent.write_text(">a\n" + "TAACTAGTTAGCTAACTTAACTAA" * 30 + "\n>b\n\n>a\nACGT\n")
    policies = InputPolicies(empty_records="skip", empty_samples="skip", duplicate_ids="skip")
    classify([silent], Features([]), demo_classifier(20), tmp_path / "out", window=500, policies=policies)
    calls = table(tmp_path / "out/contigs.tsv")
    assert column(calls, "call") == ["unscored"] * 3
    assert column(calls, "reason") == ["no stop-free frame", "no residues", "an earlier record has the same id"]
    assert table(tmp_path / "out/frames.tsv") == table(tmp_path / "out/prediction_results_highestscore.csv") == []
    with pytest.raises(UserError, match="already used"):
        classify(
            [silent], Features([]), demo_classifier(20), tmp_path / "out", window=500, policies=InputPolicies("skip")
        )


def test_the_rule_for_contigs() -> None:
    frames = stub_frames([[(0.1, 0.9), (0.21, 0.79)], [(0.5, 0.5)], [(0.9, 0.1)], [(0.36, 0.64), (0.64, 0.36)]])
    calls = contig_calls(frames, window_scores(frames), CallRule())
    assert [call.call for call in calls] == ["viral", "ambiguous", "non-viral", "ambiguous"]
    expected = (0.8 * 0.8**0.5 + 0.58 * 0.58**0.5) / (0.8**0.5 + 0.58**0.5)
    assert calls[0].score == pytest.approx(expected, abs=1e-6)
    assert (calls[0].surely_viral, calls[2].surely_not, calls[1].score) == (1, 1, 0)
    with pytest.raises(UserError, match="the second no larger"):
        CallRule(viral_over=-0.5)


def test_the_classifier_is_read_without_code_and_has_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    path = save_as_main(model, tmp_path / "500_model.pth", monkeypatch)
    x = torch.randn(5000, BASES_WIDTH + PROTEIN_WIDTH)
    with torch.no_grad():
        expected = model(x).softmax(1).numpy()
    assert np.abs(read_classifier(path, 500).scores(x.numpy()) - expected).max() < 1e-6
    torch.save(model.state_dict(), tmp_path / "state.pth")
    assert np.abs(read_classifier(tmp_path / "state.pth", 500).scores(x.numpy()) - expected).max() < 1e-6
    for file, window, words in (
        (path, 300, "is the classifier for windows of 500"),
        (path, 400, "give 300 or 500"),
        (tmp_path / "none.pth", 300, "no such classifier"),
    ):
        with pytest.raises(UserError, match=words):
            read_classifier(file, window)
    with pytest.raises(UserError, match="the classifier takes 20"):
        read_classifier(path, 500).scores(x[:, 1:].numpy())
    torch.save({**model.state_dict(), "bn1.bias": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bn1\.bias"):
        read_classifier(tmp_path / "bad.pth", 500)
    model.output_layer = torch.nn.Sequential()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"Sequential|output_layer"):
        read_classifier(save_as_main(model, tmp_path / "other.pth", monkeypatch), 500)


def test_a_classifier_that_was_saved_on_a_gpu_is_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = save_as_main(trained(), tmp_path / "500_model.pth", monkeypatch)
    there = tmp_path / "gpu" / "500_model.pth"
    there.parent.mkdir()
    with zipfile.ZipFile(here) as old, zipfile.ZipFile(there, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):  # the places of its storages, as pickle writes texts
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)
    monkeypatch.setattr(sys.modules["__main__"], "MLPClassifier", MLPClassifier, raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(there, weights_only=False)
    ours, expected = read_classifier(there, 500).tensors, read_classifier(here, 500).tensors
    assert all(np.array_equal(ours[name], tensor) for name, tensor in expected.items())
