"""Earlier results that are hit between the plan and the merge, in the real workflow."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.workflow.faults import Run, flip, record, same_table, undisturbed_run, write_proteins
from virnucpro import embed, read_embeddings

MERGE = Counter(merge_embeddings=1)


def origins(table: Path) -> Counter[str]:
    return Counter(pq.read_table(table, columns=["origin"])["origin"].to_pylist())


def test_sources_that_are_hit_between_the_plan_and_the_merge(tmp_path: Path) -> None:
    """While they are indexed one is deleted, one damaged, one swapped; all are deleted while a chunk is embedded."""
    earlier, own = tmp_path / "earlier", tmp_path / "own.faa"
    write_proteins(tmp_path / "earlier.faa", 12)
    embed(tmp_path / "earlier.faa", earlier, model="esm2_demo", devices=["cpu"], chunk_residues=400)
    write_proteins(own, 3, seed=2)
    own.write_text(own.read_text() + (tmp_path / "earlier.faa").read_text())
    alone = embed(own, tmp_path / "alone", model="esm2_demo", devices=["cpu"])
    files = sorted((earlier / "tensors").iterdir())
    assert len(files) >= 5
    deleted, damaged, swapped = files[:3]

    run = Run(tmp_path, {"samples": own, "model": "esm2_demo", "reuse": earlier})
    index, embedded = tmp_path / "index.json", run.chunk(0)
    run.order(index, "hold")
    run.order(embedded, "hold")
    process = run.start()
    try:
        run.struck(index)
        deleted.unlink()
        flip(damaged)
        shutil.copy(files[3], swapped)
        (run.plans / f"{index.name}.release").touch()
        run.struck(embedded)
        shutil.rmtree(earlier)
        (run.plans / f"{embedded.name}.release").touch()
        result = run.finish(process)
    finally:
        run.stop_all()
    assert result.code == 0, result.text
    log = (tmp_path / "results" / "logs" / "split_proteins.log").read_text()
    assert [path for path in files if (f"{path} can't be used" in log) != (path in (deleted, damaged, swapped))] == []
    left = pq.read_table(alone, columns=["id"]).num_rows - origins(run.table)["computed"]
    assert origins(run.table)[f"reused: {earlier}"] == left > 0
    assert (read_embeddings(run.table).matrix == read_embeddings(alone).matrix).all()
    again = run.call("--dry-run")
    assert again.code == 0, again.text
    assert not again.jobs
    lost = "what it had: it is embedded"
    record("a file of earlier results is deleted, damaged or swapped before it is copied", lost, again.jobs)
    record("earlier results are deleted after the split", "nothing", again.jobs)


@pytest.mark.slow  # a minute
def test_a_copy_of_earlier_results_that_is_damaged_or_lost(tmp_path: Path) -> None:
    """It is copied again, and its proteins are embedded where the source is gone."""
    run = undisturbed_run(tmp_path, reuses=True)
    before = tmp_path / "before.parquet"
    shutil.copy(run.table, before)
    copy = run.tensors / "chunk_00000.safetensors"
    flip(copy)
    run.forget_table()
    first = run.call()
    assert first.code != 0
    assert f"{copy.name}: its bytes do not give its checksum" in first.text + log_of_merge(run)
    again = run.call()
    assert again.code == 0, again.text
    assert again.jobs == Counter(split_proteins=1) + MERGE
    assert same_table(run.table, before)
    record("a copy of earlier results is damaged or lost", "the copy", again.jobs)

    earlier = tmp_path / "earlier"
    earlier.rename(tmp_path / "away")
    assert not run.call("--dry-run").jobs
    copy.unlink()
    run.forget_table()
    run.config["chunk_residues"] = 1_000_000  # all of it in one chunk
    again = run.call()
    assert again.code == 0, again.text
    assert again.jobs == Counter(split_proteins=1, embed_esm2=1) + MERGE
    assert f"{earlier} is not there any more" in (run.folder / "results/logs/split_proteins.log").read_text()
    assert set(origins(run.table)) == {"computed"}
    assert (read_embeddings(run.table).matrix == read_embeddings(before).matrix).all()
    record("the same, and its source is gone", "the copy: it is embedded", again.jobs)


def log_of_merge(run: Run) -> str:
    return (run.folder / "results" / "logs" / "own" / "merge_embeddings.log").read_text()
