"""From contigs to calls in the real Snakemake: what runs, what runs again, and what a fault costs."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.calling_cases import column, contigs, table
from tests.workflow.faults import Run, fill, record, small_disk, wait_until
from tests.workflow.running import snakemake
from virnucpro.calling.state import CallFiles
from virnucpro.storage.chunk_file import verify_chunk_file
from virnucpro.storage.chunk_writer import write_chunk_file

CLASSIFY = {"classifier": "classifier_demo", "nucleotide_model": "dnabert_s_demo", "chunk_bases": "6000"}
CALLS = "results/own/calls/calls.json"
CALL = Counter(call_contigs=1)


def settings(**changes: str) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in {**CLASSIFY, **changes}.items()) + "}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, where the vectors of one contig's frames are in earlier results, of proteins and of nucleotides."""
    folder = tmp_path_factory.mktemp("reusing")
    (folder / "earlier").mkdir()
    earlier = Run(folder / "earlier", {})
    whole = contigs(folder / "whole.fna").read_text().split(">")
    (folder / "earlier.fna").write_text("".join(f">{record}" for record in whole[4:5]))
    earlier.config |= settings_of_run(folder / "earlier.fna")
    result = snakemake(earlier.folder, "results/earlier/calls/calls.json", config=earlier.config)
    assert result.code == 0, result.text
    return finished_run(folder, reuse=earlier.folder / "results", classify=settings(chunk_bases="5000"))


def settings_of_run(fasta: Path) -> dict[str, object]:
    return {
        "samples": fasta,
        "input": "nucleotide",
        "nucleotide": "{window: 300}",
        "model": "esm2_demo",
        "classify": settings(),
    }


def finished_run(folder: Path, **changes: object) -> Run:
    contigs(folder / "own.fna")
    run = Run(folder, {**settings_of_run(folder / "own.fna"), **changes})
    embedded = snakemake(folder, "--until", "embed_dnabert_s", config=run.config)
    assert embedded.code == 0, embedded.text
    assert embedded.jobs.keys() >= {"translate_contigs", "split_nucleotides", "embed_dnabert_s"}
    assert not embedded.jobs.keys() & {"embed_esm2", "merge_embeddings", "classify_frames", "summarise"}
    result = snakemake(folder, config=run.config)
    assert result.code == 0, result.text
    chunks = len(list((folder / "results/nucleotides/tensors").iterdir())) - run.first
    assert chunks > 3
    assert embedded.jobs + result.jobs == Counter(
        prepare_weights=1,
        prepare_dnabert_s=1,
        prepare_classifier=1,
        detect_gpu=1,
        translate_contigs=1,
        split_proteins=1,
        split_nucleotides=1,
        embed_esm2=1,
        embed_dnabert_s=chunks,
        merge_embeddings=1,
        classify_frames=1,
        call_contigs=1,
        plot_sample=1,
        plot_calls=1,
        summarise=1,
    )
    for words in ("5 of 6 contigs scored", "1 contig not scored: no stop-free frame", "calls mean nothing"):
        assert words in " ".join(result.text[result.text.index("Embedded") :].split()), result.text
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Iterator[Run]:
    yield from copied(finished, tmp_path)


def copied(finished: Run, folder: Path) -> Iterator[Run]:
    copy = finished.copy(folder / "run")
    yield copy
    copy.stop_all()


def files(run: Run) -> CallFiles:
    return CallFiles(run.folder / "results" / "own")


def tables_of(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files(run).calls.iterdir()}


def nucleotide_chunk(run: Run, number: int) -> Path:
    return files(run).folder.parent / "nucleotides" / "tensors" / run.chunk(number).name


def logs(run: Run) -> str:
    return "\n".join(path.read_text() for path in sorted((run.folder / "results" / "logs").rglob("*.log")))


def test_every_contig_and_frame_that_came_in_is_there(finished: Run) -> None:
    calls = table(files(finished).calls / "contigs.tsv")
    assert column(calls, "contig") == [f"contig_{i}" for i in range(4)] + ["a_chunk_1", "silent"]
    translated = (files(finished).folder / "translated.faa").read_text().splitlines()
    ids = [line[1:] for line in translated if line[0] == ">"]
    assert column(table(files(finished).calls / "frames.tsv"), "id") == ids
    summary = table(finished.folder / "results" / "summary.tsv")
    assert summary[-1]["contigs_unscored"] == "1"


def test_what_changed_decides_what_runs_again(run: Run) -> None:
    """In dry runs: a threshold, the size of chunks, the numbers' format, the window, no calls at all, and nothing."""

    def again(**changes: object) -> Counter[str]:
        result = snakemake(run.folder, "--dry-run", CALLS, config={**run.config, **changes})
        assert result.code == 0, result.text
        return result.jobs

    assert not again()
    assert again(classify=settings(viral_over="0.5")) == CALL
    # Chunks are known once their checkpoint has run; what is embedded stays, and with it the scores.
    assert again(classify=settings(chunk_bases="9000")) == Counter(split_nucleotides=1, classify_frames=1)
    chunks = len(list(nucleotide_chunk(run, 0).parent.iterdir()))
    scores = Counter(embed_esm2=1, embed_dnabert_s=chunks, classify_frames=1) + CALL
    assert again(precision="bf16") == scores
    off = snakemake(run.folder, "--dry-run", config={**run.config, "classify": "{classifier: none}"})
    assert off.code == 0
    assert off.jobs == Counter(summarise=1), "the summary speaks of no calls then"
    assert "results/own/calls is of an earlier run and is left as it is" in off.text


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("name", ["finished", "reusing"])
def test_kills_and_bad_chunk_files_cost_what_they_hit(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    finished: Run = request.getfixturevalue(name)
    for run in copied(finished, tmp_path):
        kills_and_bad_chunk_files(run, finished)


def kills_and_bad_chunk_files(run: Run, finished: Run) -> None:
    before = tables_of(run)

    def killed(*outputs: Path) -> Counter[str]:
        """Jobs of a call in which those that make these outputs are killed."""
        for output in outputs:
            run.order(output, "pause")
        started = run.start("--keep-going", target=CALLS)
        waiting = set(outputs)
        while waiting:  # for whichever comes first: two jobs may not fit beside each other
            wait_until(lambda: any((run.plans / f"{output.name}.pid").exists() for output in waiting), 90)
            for output in [output for output in waiting if (run.plans / f"{output.name}.pid").exists()]:
                os.kill(run.struck(output), signal.SIGKILL)
                waiting.remove(output)
        result = run.finish(started)
        assert result.code != 0
        return result.jobs

    (classifier,) = (run.folder / "resources").glob("classifier_demo-*")
    classifier.unlink()
    (files(run).folder.parent / "nucleotides" / "chunks" / "split.json").unlink()
    files(run).scores.unlink()
    nucleotide_chunk(run, 0).unlink()
    cut = nucleotide_chunk(run, 1)
    cut.write_bytes(cut.read_bytes()[:-100])
    one, other = nucleotide_chunk(run, 2), nucleotide_chunk(run, 3)
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    file = verify_chunk_file(aside)
    metadata = {key: value for key, value in file.metadata.items() if key not in ("checksum", "format")}
    write_chunk_file(other, {name: file.read(name) for name in file.names}, metadata | {"weights_sha256": "0" * 64})
    aside.unlink()

    assert killed(files(run).folder / "nucleotides" / "nucleotides.parquet") == Counter(split_nucleotides=1)
    killed(classifier, nucleotide_chunk(run, 0))
    assert nucleotide_chunk(run, 1).exists()
    assert not nucleotide_chunk(run, 0).exists()
    again = killed(files(run).scores)
    assert again == Counter(prepare_classifier=1, embed_dnabert_s=1, classify_frames=1)
    assert not files(run).scores.exists()
    again = killed(files(run).calls_record)
    assert again == Counter(classify_frames=1) + CALL
    last = run.call(target=CALLS)
    assert last.code == 0, last.text
    assert last.jobs == CALL
    assert tables_of(run) == before == tables_of(finished), "scores and calls are the undisturbed run's"
    assert run.left_over() == []
    one_chunk = Counter(embed_dnabert_s=1, classify_frames=1) + CALL
    record("split_nucleotides is killed", "the split; chunk files that fit it are kept", Counter(split_nucleotides=1))
    record("prepare_classifier is killed", "the classifier", Counter(prepare_classifier=1))
    record("a job of embed_dnabert_s is killed (SIGKILL)", "its chunk", one_chunk)
    record("a chunk file of nucleotides is lost, cut short or swapped (its header tells)", "the chunk", one_chunk)
    record("classify_frames is killed half-way", "the scores", Counter(classify_frames=1) + CALL)
    record("call_contigs is killed half-way", "the calls", last.jobs)


@pytest.mark.slow  # a minute
def test_a_full_disk_costs_what_did_not_fit(run: Run, finished: Run) -> None:
    tensors = nucleotide_chunk(run, 1).parent
    for rule, folder, name in (
        ("embed_dnabert_s", tensors, nucleotide_chunk(run, 1).name),
        ("classify_frames", files(run).folder, files(run).scores.name),
        ("call_contigs", files(run).folder, "calls/contigs.tsv"),
    ):
        with small_disk(folder, megabytes=4) as disk:
            (disk / name).unlink()
            if rule == "embed_dnabert_s":
                files(run).scores.unlink()  # else nobody needs the chunk
            filler = disk / "somebody-elses-data"
            fill(filler)
            first = run.call(target=CALLS)
            assert first.code != 0
            assert rule in first.jobs
            said = logs(run)
            assert re.search(r"error: .*(0 bytes is free|No space left on device; free space there)", said)
            assert "Traceback" not in said
            assert not (disk / name).exists()
            assert run.left_over() == []
            filler.unlink()
            again = run.call(target=CALLS)
            assert again.code == 0, again.text
            shutil.rmtree(folder.with_name(f"{folder.name}-files"))
            shutil.copytree(disk, folder.with_name(f"{folder.name}-files"), symlinks=True)
        folder.rmdir()
        folder.with_name(f"{folder.name}-files").rename(folder)
    assert tables_of(run) == tables_of(finished)
