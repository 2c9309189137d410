"""Many small samples in one run: chunks and jobs that they share, and a sample that joins them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.workflow.running import snakemake
from virnucpro.run_state import FEW, FEWEST_JOBS

pytestmark = pytest.mark.usefixtures("one_thread")

CHANCE = random.Random(7)
POOL = ["".join(CHANCE.choices("LAGVSERTIDPKQNFYMHWC", k=20)) for _ in range(60)]
MERGES = Counter({f"merge_embeddings_{number}": 1 for number in range(FEWEST_JOBS)})
ONCE = Counter(split_proteins=1, embed_esm2=1, map_samples=1, summarise=1)


def write(folder: Path, number: int, sequences: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(f">s{number}_{place}\n{sequence}\n" for place, sequence in enumerate(sequences))
    (folder / f"s{number:02d}.faa").write_text(text)


def tables(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("results/*/embeddings.parquet")}


def test_small_samples_share_chunks_and_jobs_and_one_more_embeds_what_is_new(tmp_path: Path) -> None:
    config = {"samples": "data", "model": "esm2_demo", "sample_plots": "none"}
    for number in range(FEW + 1):
        write(tmp_path / "data", number, POOL[number : number + 5])
    result = snakemake(tmp_path, config=config)
    assert result.code == 0, result.text
    assert result.jobs == ONCE + MERGES + Counter(prepare_weights=1, detect_gpu=1)
    before = tables(tmp_path)
    assert len(before) == FEW + 1
    write(tmp_path / "data", FEW + 1, POOL[3:8] + POOL[50:53])
    result = snakemake(tmp_path, config=config)
    assert result.code == 0, result.text
    assert result.jobs == ONCE + Counter({f"merge_embeddings_{FEWEST_JOBS - 1}": 1})
    assert (
        f"{FEW + 5} embedded before in this folder, 0 taken from earlier results, 3 to embed"
        in (tmp_path / "results/logs/split_proteins.log").read_text()
    )
    after = tables(tmp_path)
    assert {name: after[name] for name in before} == before
    rows = pq.read_table(tmp_path / f"results/s{FEW + 1:02d}/embeddings.parquet").to_pylist()
    same = pq.read_table(tmp_path / "results/s03/embeddings.parquet").to_pylist()
    assert [row["embedding"] for row in rows[:5]] == [row["embedding"] for row in same]
    assert {row["origin"] for row in rows} == {"computed"}
    (tmp_path / "results" / "s03" / "embeddings.parquet").unlink()
    for option in ("--until", "--forcerun"):
        result = snakemake(tmp_path, option, "merge_embeddings", "--dry-run", config=config)
        assert result.code == 0, result.text
        merges = {name: count for name, count in result.jobs.items() if name.startswith("merge")}
        assert merges == ({"merge_embeddings_0": 1} if option == "--until" else MERGES)
