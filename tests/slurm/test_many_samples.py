"""A hundred small samples on a real Slurm: how many jobs it gets."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.slurm.commands import SLURM, jobs
from tests.workflow.faults import Run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]  # minutes, nearly all of it waiting

SAMPLES, PROTEINS = 100, 20
MOST = 20
"""Jobs, all in all: fewer are asked for."""

CHANCE = random.Random(18)
POOL = ["".join(CHANCE.choices("LAGVSERTIDPKQNFYMHWC", k=CHANCE.randint(20, 80))) for _ in range(600)]


def finished(slurm: Path) -> dict[str, str]:
    """Every job in Slurm's own log of what has ended, by its id: its state."""
    log = slurm / "finished-jobs.log"
    text = log.read_text() if log.exists() else ""
    return dict(re.findall(r"^JobId=(\d+) .*JobState=(\w+)", text, flags=re.MULTILINE))


def test_a_hundred_samples_take_few_jobs(tmp_path: Path, slurm: Path) -> None:
    samples = {f"s{number:03d}": CHANCE.sample(POOL, PROTEINS) for number in range(SAMPLES)}
    (tmp_path / "data").mkdir()
    for name, proteins in samples.items():
        text = "".join(f">{name}_{place}\n{protein}\n" for place, protein in enumerate(proteins))
        (tmp_path / "data" / f"{name}.faa").write_text(text)
    run = Run(tmp_path, {"samples": tmp_path / "data", "model": "esm2_demo"}, SLURM)
    before, ended = jobs(), finished(slurm)
    try:
        result = run.finish(run.start(target=""), timeout=800)
    finally:
        run.stop_all()
    assert result.code == 0, result.text
    seen = jobs().keys() - before.keys()
    states = {number: state for number, state in finished(slurm).items() if number not in ended}
    print(f"{SAMPLES} samples: {len(seen)} jobs in Slurm's queue, {len(states)} in its log, {Counter(states.values())}")
    print(dict(result.jobs))
    assert states == dict.fromkeys(seen, "COMPLETED")
    assert seen == set(re.findall(r"SLURM jobid (\d+)", result.text))
    assert 0 < len(seen) < MOST
    for name in samples:
        ids = pq.read_table(tmp_path / "results" / name / "embeddings.parquet", columns=["id"])["id"].to_pylist()
        assert ids == [f"{name}_{place}" for place in range(PROTEINS)]
