"""What a dry run predicts: chunks, proteins, residues, and a time that comes from something measured."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.splitting import split_proteins
from tests.unit.stub_chunks import stub_statistics, write_stub_chunk
from tests.unit.test_report_plots import protein
from virnucpro.base.digest import file_sha256, write_products
from virnucpro.chunking.manifest import SplitRecord, SplitSettings
from virnucpro.chunking.size import ChunkSize
from virnucpro.chunking.split import ToSplit, split_samples
from virnucpro.config import RunConfig, load_config
from virnucpro.config_files import Source
from virnucpro.plan import H200_TOKENS_PER_SECOND, Planned, plan, planned_text
from virnucpro.run_state import run_state
from virnucpro.sequences.fasta import Amount, estimate
from virnucpro.storage.state import translation_origin

LENGTHS = [30, 40, 50, 200, 300]
TEXT = "".join(f">p{length} some words > here\n{protein(length)[:25]}\n{protein(length)[25:]}\n" for length in LENGTHS)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.faa").write_text(TEXT)

    def make(**config: Any) -> RunConfig:
        given = {"samples": "own.faa", "chunk_residues": 200, **config}
        return load_config(Source("the test", given))

    return make


def planned(run: RunConfig) -> list[Planned]:
    return plan(run, run_state(run))


def text_of(run: RunConfig) -> str:
    return planned_text(run, planned(run))


def split(run: RunConfig) -> list[Path]:
    settings = replace(run_state(run).pool.split_settings, chunk_residues=200)
    split_as(run, settings)
    return sorted((run.results / "chunks").glob("chunk_*.json"))


def split_as(run: RunConfig, settings: SplitSettings) -> SplitRecord:
    sample = run_state(run).samples["own"]
    sequences = sample.translated if sample.window else Path("own.faa")
    return split_samples({"own": ToSplit([sequences], sample.index, sample.skipped)}, run.results / "chunks", settings)


def finish(manifest: Path, run: RunConfig, **changes: Any) -> None:
    statistics = json.dumps(stub_statistics(1, 998) | {"seconds": 2.0})
    metadata = {"model": run.model.name, "statistics": statistics, "device": "NVIDIA A100"}
    output = run.results / "tensors" / f"{manifest.stem}.safetensors"
    write_stub_chunk(manifest.with_suffix(".fasta"), output, **(metadata | changes))


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_whole_file_is_counted_exactly(ends: str, tmp_path: Path) -> None:
    path = tmp_path / "own.faa"
    path.write_bytes(TEXT.replace("\n", ends).rstrip().encode())
    assert estimate([path]) == Amount(len(LENGTHS), sum(LENGTHS), len(LENGTHS), sum(LENGTHS), exact=True)
    (tmp_path / "own.faa.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert estimate([tmp_path / "own.faa.gz"]) == estimate([path])


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_judged_by_its_beginning(packed: bool, tmp_path: Path) -> None:
    text = "".join(f">protein_number_{number}\n{protein(200 + number % 100, number)}\n" for number in range(20_000))
    path = tmp_path / "own.faa"
    path.write_bytes(gzip.compress(text.encode(), 1) if packed else text.encode())
    amount = estimate([path], enough=path.stat().st_size // 3)
    whole = estimate([path])
    assert whole.exact
    assert not amount.exact
    assert amount.records == pytest.approx(whole.records, rel=0.05)
    assert amount.letters == pytest.approx(whole.letters, rel=0.05)


def test_before_the_split_the_files_are_counted(run: Any) -> None:
    (sample,) = planned(run())
    assert "5 proteins, 620 residues; not split yet, about 4 chunks" in sample.line
    assert sample.tokens == 620 + 2 * 5
    text = text_of(run())
    assert f"{H200_TOKENS_PER_SECOND['esm2_t36_3B_UR50D']:,} tokens/s" in text
    assert "NVIDIA H200" in text


def test_the_number_of_chunks_predicted_is_the_number_that_is_split(run: Any) -> None:
    """Also where chunks come in multiples, for GPUs to end together, and where sequences repeat."""
    records = [(f"p{number}", protein(300, number % 90)) for number in range(120)]
    Path("own.faa").write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    config = run(layers=[0], model="esm2_demo")
    assert config.chunk_size.multiple_of == 1
    for size in (ChunkSize(9_000, 8), ChunkSize(10_000, 8), ChunkSize(10_000, 1), ChunkSize(10**6, 8)):
        (sample,) = planned(replace(config, chunk_sizes={"gpu": size}))
        counts = split_proteins(
            [Path("own.faa")],
            Path("index"),
            Path("chunks"),
            chunk_residues=size.residues,
            multiple_of=size.multiple_of,
        )
        assert sample.chunks == counts.chunks
        assert sample.tokens == counts.unique_residues + 2 * counts.unique
    assert run(chunk_residues="auto").chunk_size.multiple_of == 8


def test_chunks_are_sized_by_model_and_device_and_a_split_for_the_other_device_serves(run: Any) -> None:
    records = [(f"p{number}", protein(300, number)) for number in range(90)]
    Path("own.faa").write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    gpu, cpu = run(chunk_residues="auto"), run(chunk_residues="auto", gpus_per_job=0)
    assert (gpu.chunk_size, cpu.chunk_size) == (ChunkSize(20_000_000, 8), ChunkSize(21_000, 8))
    assert (planned(gpu)[0].chunks, planned(cpu)[0].chunks) == (1, 8)
    assert len(split_as(cpu, run_state(cpu).pool.split_settings).chunks) == 8
    assert [planned(config)[0].chunks for config in (cpu, gpu)] == [8, 8], "what is done on a CPU counts on a GPU"
    assert run_state(run(chunk_residues=20_000_000)).split_stale() == "made with another chunk residues"
    sizes = {
        model: run(chunk_residues="auto", model=model).chunk_sizes
        for model in ("esm2_t48_15B_UR50D", "esm2_t33_650M_UR50D", "esm2_demo")
    }
    assert [(size["gpu"].residues, size["cpu"].residues) for size in sizes.values()] == [
        (3_800_000, 4_000),
        (40_000_000, 92_000),
        (40_000_000, 40_000_000),
    ]
    Path("fine_tuned.pt").write_bytes(bytes(4 * 7_400_000))
    assert run(chunk_residues="auto", model="fine_tuned.pt").chunk_sizes["cpu"].residues == 8_100_000


def test_a_sample_without_proteins(run: Any) -> None:
    Path("own.faa").write_text("; a negative control\n")
    assert text_of(run(empty_samples="skip")) == "own: no protein in it.\nNothing is left to embed."


def test_after_the_split_the_chunks_are_known(run: Any) -> None:
    manifests = split(run())
    (sample,) = planned(run())
    assert sample.exact
    assert sample.chunks == len(manifests) > 1
    assert f"{len(manifests)} chunks of 5 different proteins, 620 residues; 0 done" in sample.line


def test_finished_chunks_tell_the_rate(run: Any) -> None:
    manifests = split(run())
    finish(manifests[0], run())
    text = text_of(run())
    left = [json.loads(path.read_text()) for path in manifests[1:]]
    tokens = sum(entry["residues"] + 2 * entry["proteins"] for entry in left)
    assert f"1 done, {len(left)} to embed" in text
    assert f"About {tokens / 500:.1f} s on one device such as did the finished chunks (NVIDIA A100)" in text
    for manifest in manifests:
        finish(manifest, run())
    assert "Nothing is left to embed." in text_of(run())


@pytest.mark.parametrize(
    "changes",
    [{"model": "esm2_t6_8M_UR50D"}, {"precision": "fp32"}, {"chunk_digest": "0" * 32}, {"long_proteins": "{}"}],
)
def test_a_chunk_of_another_kind_is_not_done(changes: dict[str, str], run: Any) -> None:
    manifests = split(run())
    finish(manifests[0], run(), **changes)
    (sample,) = planned(run())
    assert sample.chunks == len(manifests)


def test_no_time_is_made_up(run: Any) -> None:
    for config in ({"model": "esm2_t48_15B_UR50D"}, {"precision": "fp32"}):
        text = text_of(run(**config))
        assert "Left to embed" in text
        assert "H200" not in text
        assert "About" not in text


def test_contigs_wait_for_their_translation(run: Any, tmp_path: Path) -> None:
    contigs = run(input="nucleotide")
    assert "5 contigs, 620 bases; proteins are known once translated" in text_of(contigs)
    sample = run_state(contigs).samples["own"]
    sample.folder.mkdir(parents=True)
    sample.translated.write_text(">a_chunk_1F1\nMKV\n")
    assert "proteins are known once translated" in text_of(contigs), "nothing says of what it was translated"
    origin = translation_origin([file_sha256(tmp_path / "own.faa")], contigs.window, contigs.policies)
    write_products(sample.translation, origin, [sample.translated])
    assert "1 protein, 3 residues" in text_of(contigs)


def test_an_unreadable_file_stops_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "own.faa").write_bytes(gzip.compress(TEXT.encode())[:-10])
    assert "cannot be read" in text_of(run())
