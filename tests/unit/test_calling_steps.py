"""From contigs to calls through the workflow's own steps: the original procedure's numbers, and what can go wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.oracle import fair_esm, oracle_mean
from tests.unit.calling_cases import MLPClassifier, column, contigs, save_as_main, table, trained
from tests.unit.calling_steps import Steps
from tests.unit.test_mosaic_bert import plain_tokens, restated
from tests.unit.test_virnucpro_pt import read_plain
from virnucpro.base import limits
from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record, write_record
from virnucpro.calling import contigs as contigs_module
from virnucpro.calling.classifier import load_classifier
from virnucpro.calling.state import CallRule, CallsRecord
from virnucpro.cli import main
from virnucpro.models.esm2 import synthetic as esm2_synthetic
from virnucpro.models.esm2.sizes import DEMO_ARCHITECTURE, ESM2_MODELS, Architecture
from virnucpro.models.mosaic_bert import family as mosaic_family
from virnucpro.models.mosaic_bert.sizes import DEMO_SIZES, MOSAIC_MODELS, MosaicSizes
from virnucpro.report import CALL_PLOTS
from virnucpro.report.call_plots import plot_calls, read_scores, scored_contigs, strongest
from virnucpro.storage.chunk_file import verify_chunk_file
from virnucpro.storage.chunk_writer import write_chunk_file

FULL = (ESM2_MODELS["esm2_t6_8M_UR50D"], MOSAIC_MODELS["dnabert_s"])


def original_features(
    folder: Path, sizes: tuple[Architecture, MosaicSizes], tokens: Path
) -> tuple[list[str], torch.Tensor]:
    """VirNucPro's procedure: each frame alone through DNABERT-S, by its formula, and through fair-esm."""
    proteins, nucleotides = (read_plain(folder / f"translated.{kind}") for kind in ("faa", "fna"))
    esm2 = fair_esm(esm2_synthetic.random_state_dict(sizes[0], seed=4), sizes[0])
    state = mosaic_family.random_state(sizes[1], seed=5)
    tokenizer = json.loads(tokens.read_text())
    layer, rows = sizes[0].layers, []
    for (name, protein), (same, bases) in zip(proteins, nucleotides, strict=True):
        assert name == same
        of_bases = restated(state, sizes[1], torch.tensor(plain_tokens(tokenizer, bases)))[-1].mean(0).float()
        rows.append(torch.cat([of_bases, oracle_mean(esm2, [protein], [layer])[0][layer]]))
    return [name for name, _ in proteins], torch.stack(rows)


def trained_on(features: torch.Tensor) -> MLPClassifier:
    """A classifier whose scores of these features differ, as a trained one's do."""
    model = MLPClassifier(features.shape[1])
    model.bn1.momentum = 1.0
    with torch.no_grad():
        model.output_layer.weight *= 8
        model(features)
    return model.eval()


def restated_calls(windows: dict[str, tuple[float, float]]) -> dict[str, str]:
    """viral-ngs's rule for a contig's windows, one by one."""
    sums: dict[str, list[float]] = {}
    for name, (s0, s1) in windows.items():
        conf = math.sqrt(abs(s1 - s0))
        total = sums.setdefault(name.rpartition("_chunk_")[0], [0.0, 0.0])
        total[0] += (s1 - s0) * conf
        total[1] += conf
    score = {contig: total / weight for contig, (total, weight) in sums.items()}
    return {contig: "viral" if s > 0.3 else "non-viral" if s < -0.3 else "ambiguous" for contig, s in score.items()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "sizes", [(DEMO_ARCHITECTURE, DEMO_SIZES), pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"]
)
def test_frames_windows_and_calls_are_the_original_procedures(
    sizes: tuple[Architecture, MosaicSizes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    esm2 = tmp_path / "esm2.pt"
    esm2_synthetic.write_checkpoint(esm2, sizes[0], seed=4)
    models = (esm2, mosaic_family.write_checkpoint(tmp_path / "dnabert", sizes[1], seed=5))
    steps = Steps(tmp_path / "sample", contigs(tmp_path / "in.fna"), models, chunk_letters=(3000, 9000))
    steps.embed()
    names, features = original_features(steps.folder, sizes, tmp_path / "dnabert" / "tokenizer.json")
    torch.manual_seed(1)
    model = trained_on(features)
    with torch.no_grad():
        scores = [model(row[None])[0].softmax(0).tolist() for row in features]
    expected = dict(zip(names, scores, strict=True))
    steps.classifier = save_as_main(model, tmp_path / "300_model.pth", monkeypatch)
    count = steps.classify()
    steps.call()

    frames = pq.read_table(steps.files.calls / "frames.parquet").to_pylist()
    assert [row["id"] for row in frames] == list(expected)
    assert count == len(expected) > 60
    ours = np.array([[row["score_others"], row["score_virus"]] for row in frames])
    difference = np.abs(ours - np.array(list(expected.values()))).max()
    print(f"{count} frames, largest difference of a score: {difference:.2e}")
    assert difference < 1e-4
    assert column(table(steps.files.calls / "prediction_results.txt"), "Prediction") == [
        ("others", "virus")[virus > others] for others, virus in expected.values()
    ]
    windows: dict[str, tuple[float, float]] = {}
    for name, (others, virus) in expected.items():
        before = windows.get(name[:-2], (0.0, 0.0))
        windows[name[:-2]] = (max(before[0], others), max(before[1], virus))
    merged = table(steps.files.calls / "prediction_results_highestscore.csv")
    assert [(row["Modified_ID"], row["Is_Virus"]) for row in merged] == sorted(
        (name, str(virus >= others)) for name, (others, virus) in windows.items()
    )
    called = {row["contig"]: row["call"] for row in table(steps.files.calls / "contigs.tsv")}
    assert called == {**restated_calls(windows), "silent": "unscored"}
    assert len(set(called.values())) > 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("steps")
    steps = Steps(folder / "sample", contigs(folder / "in.fna"))
    steps.embed()
    steps.classify()
    steps.call()
    assert len(list(steps.pools[1].tensors.iterdir())) > 2
    return steps


@pytest.fixture
def steps(finished: Steps, tmp_path: Path) -> Steps:
    """A copy of the finished sample."""
    shutil.copytree(finished.folder.parent, tmp_path / "copy")
    return Steps(tmp_path / "copy" / "sample", tmp_path / "copy" / "in.fna")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """A chunk file with a right checksum over changed content."""
    file = verify_chunk_file(path)
    tensors = {name: file.read(name) for name in file.names}
    metadata = {key: value for key, value in file.metadata.items() if key not in ("checksum", "format")}
    change(tensors, metadata)
    write_chunk_file(path, tensors, metadata)


def swap_rows(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    for name in tensors:
        tensors[name][[0, 1]] = tensors[name][[1, 0]]


def other_weights(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    metadata["weights_sha256"] = "0" * 64


def not_finite(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    tensors["mean.2"][1, 3] = np.nan


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "cut short"),
        (flipped, "do not give its checksum"),
        (lambda path: rewritten(path, swap_rows), "made of other sequences"),
        (lambda path: rewritten(path, other_weights), "made with weights_sha256 0000"),
        (Path.unlink, "is missing|are missing"),
    ],
    ids=["cut", "flipped", "swapped rows", "stale", "missing"],
)
@pytest.mark.parametrize("place", [0, 1], ids=["esm2", "dnabert_s"])
def test_a_bad_chunk_file_is_named_and_its_recomputation_gives_the_same_calls(
    damage: Callable[[Path], object], words: str, place: int, steps: Steps, finished: Steps
) -> None:
    path = steps.pools[place].chunk_file("chunk_00001")
    damage(path)
    steps.files.scores.unlink()
    with pytest.raises(UserError, match=words) as error:
        steps.classify()
    assert path.name in str(error.value)
    assert not steps.files.scores.exists()
    assert not path.exists(), "so that the next call makes it again"
    steps.embed_chunks(place)
    steps.classify()
    assert contents(finished.files.calls).items() >= {(name, data) for name, data in called(steps).items()}


def called(steps: Steps) -> dict[str, bytes]:
    steps.call()
    found = contents(steps.files.calls)
    del found["calls.json"]  # scores.parquet is compared by the rest
    return found


def test_the_steps_as_commands_give_the_same_calls(steps: Steps, finished: Steps, tmp_path: Path) -> None:
    sample, weights = str(tmp_path / "my"), list(map(str, steps.weights))
    contigs_, window = str(steps.fasta), ["--window", "300"]
    main(["translate", contigs_, "-o", sample, *window])
    translated = str(tmp_path / "my" / "translated.faa")
    main(["split", translated, "-o", sample, "--model", "esm2_demo", "--suspicious", "accept"])
    main(["split-nucleotides", sample, "--nucleotide-model", "dnabert_s_demo"])
    precision = ["--precision", "fp32"]
    main(["embed-chunk", sample, "chunk_00000", "--weights", weights[0], "--devices", "cpu", *precision])
    main(["embed-nucleotides", sample, "chunk_00000", "--weights", weights[1], "--devices", "cpu", *precision])
    given = ["--weights", weights[0], "--nucleotide-weights", weights[1], "--classifier", "classifier_demo"]
    main(["score", sample, *given, *window, *precision])
    main(["call", contigs_, "-o", sample, *window])
    ours, others = (table(folder / "calls" / "contigs.tsv") for folder in (tmp_path / "my", finished.folder))
    assert column(ours, "call") == column(others, "call")
    assert list(map(float, filter(None, column(ours, "score")))) == pytest.approx(
        list(map(float, filter(None, column(others, "score")))), abs=2e-6
    )


def test_numbers_that_are_not_finite_are_no_scores(steps: Steps) -> None:
    rewritten(steps.pools[1].chunk_file("chunk_00000"), not_finite)
    with pytest.raises(UserError, match="not finite"):
        steps.classify()


@pytest.mark.parametrize("change", ["a frame fewer", "two in another order", "none"])
def test_frames_are_paired_by_id_and_never_by_place(change: str, steps: Steps) -> None:
    """The nucleotides of other frames, in chunks that are right in themselves."""
    fasta = steps.requests[1].translated
    records = [f">{record}" for record in fasta.read_text().split(">")[1:]]
    if change == "two in another order":
        records[3], records[4] = records[4], records[3]
    fasta.write_text("".join(records[1:] if change == "a frame fewer" else [] if change == "none" else records))
    if change == "none":
        fasta.write_text(">x_chunk_1F1\nACGT\n")
    shutil.rmtree(steps.pools[1].tensors)
    steps.split(1)
    steps.embed_chunks(1)
    before = steps.files.scores.read_bytes()
    with pytest.raises(UserError, match="are not of the same frames"):
        steps.classify()
    assert steps.files.scores.read_bytes() == before


def test_what_is_no_longer_what_was_written_is_not_used(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (request.index for request in steps.requests):
        raw = index.read_bytes()
        flipped(index)
        with pytest.raises(UserError, match="is not what the split wrote"):
            steps.classify()
        index.write_bytes(raw)
    before = contents(steps.files.calls)
    flipped(steps.files.scores)
    with pytest.raises(UserError, match=r"frame_scores\.parquet was changed or damaged"):
        steps.call()
    steps.classify()
    text = steps.fasta.read_text()
    steps.fasta.write_text(text.replace("ACG", "ACT", 1))
    with pytest.raises(UserError, match="changed since the frames were translated"):
        steps.call()
    steps.fasta.write_text(text)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # half-way: the earlier calls stay as they are
        patch.setattr(contigs_module, "write_viral", fail)
        with pytest.raises((UserError, OSError), match="No space left"):
            steps.call(CallRule(viral_over=0.9))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "free_bytes", lambda _: 0)
        with pytest.raises(UserError, match=r"writing the scores of frames takes .* where 0 bytes is free"):
            steps.classify()
    assert contents(steps.files.calls) == before
    assert [path.name for path in steps.folder.iterdir() if path.name.startswith(".")] == []


def test_the_rule_of_the_configuration_decides(steps: Steps) -> None:
    strict = steps.call(CallRule(viral_over=1, non_viral_under=-1))
    assert strict["ambiguous"] + strict["unscored"] == strict.total()
    record = read_record(steps.files.calls_record, CallsRecord)
    assert record.made_from["rule viral_over"] == "1.0"
    assert record.calls == dict(strict)
    assert record.unscored == {"no stop-free frame": 1}
    assert "mean nothing" in record.warning
    assert record.made_from["dnabert_s model"] == "dnabert_s_demo"


def test_the_prepared_classifier_proves_itself(steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = steps.folder / "classifier.safetensors"
    for damage, words in ((flipped, "do not give their sha256"), (cut, "cut short"), (Path.unlink, "cannot be read")):
        raw = path.read_bytes()
        damage(path)
        with pytest.raises(UserError, match=words):
            load_classifier(path)
        path.write_bytes(raw)
    steps.classifier = save_as_main(trained(20), tmp_path / "300_model.pth", monkeypatch)
    with pytest.raises(UserError, match="have 112 features and the classifier takes 20"):
        steps.classify()


def test_a_frame_of_gaps_alone_is_embedded_as_unknown_bases(tmp_path: Path) -> None:
    """A codon that holds a gap adds nothing to the protein, and the nucleotides are cut from the frame's begin."""
    fasta = tmp_path / "in.fna"
    fasta.write_text(f">a\n{'-' * 30}{'ATGGCC' * 60}\n>b\nATGGCCATGGCC\n")
    steps = Steps(tmp_path / "sample", fasta)
    steps.embed()
    assert "-" in steps.requests[1].translated.read_text()
    frames = steps.classify()
    assert frames == sum(line.startswith(">") for line in steps.requests[1].translated.read_text().splitlines()) > 6
    assert steps.call().total() == 2


def test_no_frame_at_all_gives_tables_without_rows(steps: Steps) -> None:
    for place, request in enumerate(steps.requests):
        request.translated.write_text("")
        shutil.rmtree(steps.pools[place].tensors)
        steps.split(place)
    assert steps.classify() == 0
    assert pq.read_table(steps.files.scores).num_rows == 0


def test_plots_show_the_strongest_contigs_and_what_was_not_scored(steps: Steps, tmp_path: Path) -> None:
    calls = steps.files.calls
    contigs_ = list(scored_contigs(calls / "contigs.tsv"))
    chosen = strongest(contigs_, 2)
    assert [contig.score for contig in chosen] == sorted((contig.score for contig in contigs_), reverse=True)[:2]
    frames, tracks = read_scores(calls / "frames.parquet", chosen)
    assert frames.sum() == pq.read_table(calls / "frames.parquet").num_rows
    merged = {row["Modified_ID"]: row for row in table(calls / "prediction_results_highestscore.csv")}
    for track in tracks:
        own = {name: row for name, row in merged.items() if name.rpartition("_chunk_")[0] == track.contig.id}
        assert len(track.start) == track.contig.windows == len(own)
        assert sorted(track.virus.tolist()) == sorted(float(np.float32(row["max_score_1"])) for row in own.values())
        assert (np.diff(track.start) > 0).all()
        assert track.end.max() <= track.contig.length
    outputs = {name: [tmp_path / f"{name}.svg"] for name in CALL_PLOTS}
    plot_calls(steps.files.calls_record, outputs)
    drawn = {name: paths[0].read_bytes() for name, paths in outputs.items()}
    lines = (calls / "contigs.tsv").read_text().splitlines(keepends=True)
    (calls / "contigs.tsv").write_text(lines[0] + lines[-1])  # the one without a frame
    plot_calls(steps.files.calls_record, outputs)
    assert {name for name in CALL_PLOTS if outputs[name][0].read_bytes() != drawn[name]} == set(CALL_PLOTS) - {
        "call_counts"
    }


def test_a_record_of_calls_is_read_as_it_was_written(steps: Steps, tmp_path: Path) -> None:
    record = read_record(steps.files.calls_record, CallsRecord)
    write_record(tmp_path / "again.json", record)
    assert (tmp_path / "again.json").read_bytes() == steps.files.calls_record.read_bytes()
