"""More jobs than GPUs on one machine: Snakemake starts four, two get a GPU each, and two wait and say so.

``nvidia-smi`` is a stand-in that names two GPUs; the jobs find no CUDA there and run on the CPU, lease in hand.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workflow.faults import Run, wait_until
from virnucpro import read_embeddings


@pytest.fixture
def run(undisturbed: Run, tmp_path: Path) -> Iterator[Run]:
    copy = undisturbed.copy(tmp_path / "run")
    copy.arguments = ("--resources", "gpu=4", "--cores", "16")
    yield copy
    copy.stop_all()


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Two GPUs that no other test knows, so that no other test's lease is in the way."""
    names = {f"GPU-{uuid.uuid4()}" for _ in range(2)}
    listing = "".join(f"GPU {i}: Pretended (UUID: {name})\n" for i, name in enumerate(sorted(names)))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<EOF\n{listing}EOF\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return names


def test_no_two_jobs_on_one_gpu(run: Run, gpus: set[str], undisturbed: Run) -> None:
    chunks = [1, 3, 5, 7]
    run.forget(*chunks)
    for chunk in chunks:
        (run.folder / f"results/logs/embed_esm2/chunk_{chunk:05d}.log").unlink()
        run.order(run.chunk(chunk), "hold")
    process = run.start()

    def said(words: str) -> list[int]:
        logs = {chunk: run.folder / f"results/logs/embed_esm2/chunk_{chunk:05d}.log" for chunk in chunks}
        return [chunk for chunk, log in logs.items() if log.exists() and words in log.read_text()]

    wait_until(lambda: len(said("Leased GPU")) == 2 and len(said("Waiting for 1 free GPU")) == 2)
    working = said("Leased GPU")
    for chunk in working:
        run.struck(run.chunk(chunk))
    assert said("Leased GPU") == working, "the work of both is done, and still the others wait"
    leased = [re.search(r"Leased GPU (\S+)", run.log(chunk)) for chunk in working]
    assert {match[1] for match in leased if match} == gpus
    for chunk in chunks:
        (run.plans / f"{run.chunk(chunk).name}.release").touch()
    result = run.finish(process)
    assert result.code == 0, result.text
    # On a CPU, whose threads are another number here, the same protein's vectors may differ in their last bits.
    (ids, found), (others, expected) = (read_embeddings(one.table) for one in (run, undisturbed))
    assert list(ids) == list(others)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
