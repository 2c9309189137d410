"""Several devices of one job: shares of equal cost, and parts joined into rows, precisions and statistics."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.base.settings import LongProteins
from virnucpro.chunking.cost import protein_costs
from virnucpro.engine.batch import cut_into_pieces
from virnucpro.engine.devices import balanced_shares, join_parts, read_digests, write_part
from virnucpro.engine.embed import ProteinEmbeddings
from virnucpro.engine.processes import ordinals_of, start_driver
from virnucpro.storage.chunk_metadata import DeviceRun, RunStatistics

STATISTICS = RunStatistics(
    proteins=2,
    residues=5,
    tokens=90,
    seconds=3.0,
    load_seconds=1.0,
    padding_avoided=0.1,
    peak_memory_bytes=7,
    out_of_memory_retries=1,
    recomputed=1,
)
RUN = DeviceRun(("float16",), "standard_attention", "sdpa", "Tesla T4", "eager", {"torch": "2"}, STATISTICS)


def write(folder: Path, rows: list[int], precision: list[int], run: DeviceRun) -> Path:
    """Protein ``row`` has row + 1 residues; its mean is row."""
    lengths = np.array([row + 1 for row in rows], dtype=np.int32)
    tensors: dict[str, np.ndarray] = {
        "lengths": lengths,
        "windows": np.ones(len(rows), dtype=np.int32),
        "embedded": lengths,
        "precision": np.array(precision, dtype=np.uint8),
        "mean.3": np.array(rows, dtype=np.float32)[:, None],
        "starts": np.array(rows, dtype=np.int64) * 7,
    }
    folder.mkdir()
    write_part(folder, ProteinEmbeddings(tensors, run), {row: bytes([row]) * 32 for row in rows})
    return folder


def test_rows_come_back_in_their_order_with_what_is_theirs(tmp_path: Path) -> None:
    slow = replace(RUN, precisions=("float16", "float32"), statistics=replace(STATISTICS, seconds=5.0))
    other = replace(RUN, device="NVIDIA A100", statistics=replace(STATISTICS, tokens=110))
    parts = [
        write(tmp_path / "a", [1, 3], [1, 0], slow),
        write(tmp_path / "b", [0, 2], [0, 0], other),
        write(tmp_path / "none", [], [], replace(RUN, statistics=replace(STATISTICS, tokens=0, proteins=0))),
    ]
    joined = join_parts(parts, [np.array([1, 3]), np.array([0, 2]), np.array([], np.int64)])
    tensors, run = joined.tensors, joined.run
    assert tensors["mean.3"][:, 0].tolist() == [0, 1, 2, 3]
    assert tensors["lengths"].tolist() == [1, 2, 3, 4]
    assert tensors["starts"].tolist() == [0, 7, 14, 21]
    assert [read_digests(part) for part in parts] == [{1: b"\1" * 32, 3: b"\3" * 32}, {0: bytes(32), 2: b"\2" * 32}, {}]
    assert tensors["precision"].tolist() == [0, 1, 0, 0]
    assert (run.precisions, run.device) == (("float16", "float32"), "Tesla T4 + NVIDIA A100")
    assert (run.attention, run.layers_run, run.versions) == ("standard_attention", "eager", {"torch": "2"})
    statistics = run.statistics
    assert (statistics.proteins, statistics.tokens, statistics.seconds) == (4, 200, 5.0)
    assert (statistics.tokens_per_second, statistics.recomputed) == (40, 3)
    assert abs(statistics.padding_avoided - 0.1) < 1e-9


@pytest.mark.parametrize("narrow", ["float16", "int8"])
def test_precisions_of_different_devices_are_told_apart(tmp_path: Path, narrow: str) -> None:
    parts = [
        write(tmp_path / "a", [0], [0], replace(RUN, precisions=("float32",))),
        write(tmp_path / "b", [1], [1], replace(RUN, precisions=(narrow, "bfloat16"))),
    ]
    joined = join_parts(parts, [np.array([0]), np.array([1])])
    assert joined.run.precisions == (narrow, "bfloat16", "float32")
    assert joined.tensors["precision"].tolist() == [2, 1]
    assert joined.run.device == "Tesla T4"


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=200), shares=st.integers(1, 8))
def test_shares_hold_every_protein_once_and_cost_the_same(lengths: list[int], shares: int) -> None:
    costs = protein_costs(np.array(lengths), embed_dim=320, long_proteins=LongProteins())
    rows = balanced_shares(costs, shares)
    assert sorted(row for own in rows for row in own.tolist()) == list(range(len(lengths)))
    held = [costs[own].sum() for own in rows]
    assert max(held) - min(held) <= costs.max() * (1 + 1e-9), "no share is behind by more than one protein"


@pytest.mark.parametrize("policy", ["truncate", "window", "full"])
def test_shares_are_of_what_is_run(policy: str) -> None:
    """Two proteins of 30,000 residues among many of 300, on four devices, counted in operations of the pieces."""
    lengths = np.array([30_000, 30_000] + [300] * 1000)
    costs = protein_costs(lengths, embed_dim=320, long_proteins=LongProteins(policy))
    pieces = cut_into_pieces(lengths, LongProteins(policy, 1022, 511))
    tokens = pieces.length + 2.0
    operations = np.bincount(pieces.row, 24 * 320**2 * tokens + 4 * 320 * tokens**2)
    held = [operations[own].sum() for own in balanced_shares(costs, 4)]
    largest_that_moves = operations[2:].max() if policy != "full" else operations.max()
    assert max(held) - operations.sum() / 4 <= largest_that_moves


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cuda:1", "cuda:0"], [1, 0]),
        (["cuda:3"], [3]),
        (["cpu"], []),
        (["cuda"], []),
        (["cuda:0", "cpu"], []),
        (None, []),
    ],
)
def test_the_gpus_that_processes_can_be_started_for(devices: list[str] | None, expected: list[int]) -> None:
    assert ordinals_of(devices) == expected


def test_the_driver_is_started_with_the_context_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of libcuda, in order; a driver that fails, or is not there, is passed over."""
    asked: list[str] = []

    class Driver:
        fails = ""

        def __getattr__(self, name: str) -> Callable[..., int]:
            asked.append(name)
            return lambda *arguments: int(name == self.fails)

    def missing(name: str) -> Driver:
        raise OSError(name)

    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    for ordinal, fails, expected in (
        (1, "", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]),
        (1, "cuDeviceGet", ["cuInit", "cuDeviceGet"]),
        (1, "cuInit", ["cuInit"]),
        (None, "", ["cuInit"]),
    ):
        driver.fails = fails
        asked.clear()
        start_driver(ordinal).join()
        assert asked == expected
    monkeypatch.setattr(ctypes, "CDLL", missing)
    start_driver(0).join()
