"""A real Slurm for the tests of this folder, started once; where that cannot be, they skip themselves and say why."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import testbed


@pytest.fixture(scope="package")
def slurm() -> Iterator[Path]:
    """The test bed's folder; SLURM_CONF is set for this process and all it starts."""
    if reason := testbed.missing():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="virnucpro-slurm-"))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    try:
        with testbed.running(directory):
            yield directory
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(directory, ignore_errors=True)
