"""Which features of a cluster are asked for with --prefer, and when none is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virnucpro.slurm.cluster import (
    Cluster,
    JobSize,
    ask_cluster,
    is_ampere_or_newer,
    parse_gres,
    parse_groups,
    parse_version,
    prefer_option,
    preferred_features,
    why_not_reached,
)

NEW = """
    ampere Ampere ada lovelace ada_lovelace hopper BLACKWELL gpu_ampere gpu:hopper nvidia-ampere
    a100 A100 A100-SXM4-80GB a100_80gb nvidia_a100_80gb_pcie gpu_a100 gpua100 tesla_a30 a10 A10G a40 A2 a16
    rtx3090 rtx_3090 RTX-3090 geforce_rtx_3080_ti geforcertx3080ti 3090 rtx4090 RTX_6000_Ada rtxa6000 RTX_A6000
    quadro_rtx_a5000
    l4 L40S l40 h100 H100_SXM5 h200 gh200 GPU_SKU:H100_SXM5 b200 GB200 rtx5090 rtx_pro_6000
    sm80 sm_86 SM89 sm90a sm100 sm_120 compute_80 compute90 cc8.0 CC86 cc_9.0 GPU_CC:8.0 GPU_CC:12.0 cuda_cc8.9 sm100f
"""

OLD = """
    turing volta pascal kepler maxwell v100 V100-SXM2-32GB GPU_SKU:V100_SXM2 p100 t4 T4 k80 m60 titanv
    rtx2080ti rtx_2080_ti gtx1080 quadro_rtx_6000 rtx6000 rtx_8000 sm75 sm_70 cc7.5 compute_61 GPU_CC:7.0 sm60 cc1.0
    avx512 cascadelake epyc7742 intel amd infiniband ib hdr bigmem mem512g gpu gpu80 80gb node100 rack10 cuda12 gen8 u2
    ssd
    granada canada adaptive xa100x 1a2b alpha2
"""


@pytest.mark.parametrize("name", NEW.split())
def test_names_of_ampere_and_newer(name: str) -> None:
    assert is_ampere_or_newer(name)


@pytest.mark.parametrize("name", OLD.split())
def test_names_of_older_gpus_and_of_other_things(name: str) -> None:
    assert not is_ampere_or_newer(name)


def test_a_site_adds_its_own_names() -> None:
    assert not is_ampere_or_newer("fastgpu")
    assert is_ampere_or_newer("fastgpu", also=["fastgpu"])


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)", {}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:a100:2,gpu:a100:2,nvme:1,gpu:t4:1", {"a100": 4, "t4": 1}),
        ("gpu:nvidia_a100_80gb_pcie:2(S:0,2),shard:8", {"nvidia_a100_80gb_pcie": 2}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
        ("gpu:tesla:no_consume:2", {"tesla": 2}),
        ("craynetwork:4,nogpu:2", {}),
    ],
)
def test_generic_resources(text: str, gpus: dict[str, int]) -> None:
    assert parse_gres(text) == gpus


@pytest.mark.parametrize(
    ("text", "version"),
    [("slurm 23.02.7\n", (23, 2)), ("slurm-wlm 22.05.8", (22, 5)), ("slurm 24.11.0-1", (24, 11)), ("?", (0, 0))],
)
def test_version(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


MIXED = """\
cpu*|up|avx512|(null)|16000|4
gpu|up|ampere,sm80|gpu:a100:2(S:0)|64000+|16
gpu|up|ampere,sm86|gpu:a40:1|32000|16
gpu|up|hopper,sm90|gpu:h100:8|512000|64
gpu|up|turing,sm75|gpu:rtx2080ti:2|64000|16
old|down|ada|gpu:l40:4|64000|16
"""


def cluster(text: str = MIXED, version: tuple[int, int] = (23, 2)) -> Cluster:
    return Cluster(version, tuple(parse_groups(text)))


def test_features_of_all_generations_from_ampere_on() -> None:
    assert preferred_features(cluster(), JobSize(), partition="gpu") == ["ampere", "hopper", "sm80", "sm86", "sm90"]
    assert prefer_option(cluster(), JobSize(), partition="gpu") == "--prefer='ampere|hopper|sm80|sm86|sm90'"


@pytest.mark.parametrize(
    ("size", "features"),
    [
        (JobSize(gpus=2), ["ampere", "hopper", "sm80", "sm90"]),
        (JobSize(memory_mb=40_000), ["ampere", "hopper", "sm80", "sm90"]),
        (JobSize(memory_mb=100_000), ["hopper", "sm90"]),
        (JobSize(cpus=32), ["hopper", "sm90"]),
        (JobSize(gpus=9), []),
        (JobSize(gpu_type="a40"), ["ampere", "sm86"]),
        (JobSize(gpu_type="rtx2080ti"), []),
    ],
)
def test_only_features_of_nodes_that_can_hold_the_job(size: JobSize, features: list[str]) -> None:
    """Slurm refuses a job whose preferred nodes could never hold it."""
    assert preferred_features(cluster(), size, partition="gpu") == features


def test_only_features_of_the_jobs_partition() -> None:
    assert prefer_option(cluster(), JobSize(), partition="cpu") == "", "it has no GPU"
    assert prefer_option(cluster(), JobSize(), partition="cpu,gpu") == prefer_option(
        cluster(), JobSize(), partition="gpu"
    )
    assert prefer_option(cluster(), JobSize(), partition="old") == "", "it is down"


def test_nothing_is_preferred_where_nothing_is_known() -> None:
    assert prefer_option(None, JobSize(), partition="gpu") == ""
    assert prefer_option(cluster(version=(21, 8)), JobSize(), partition="gpu") == "", "--prefer came with 22.05"
    nameless = cluster("gpu*|up|(null)|gpu:a100:4|64000|16\ngpu*|up|rack7|gpu:t4:4|64000|16\n")
    assert prefer_option(nameless, JobSize()) == ""
    assert prefer_option(nameless, JobSize(), also=["rack7"]) == "--prefer=rack7"


def test_features_that_would_change_the_expression_are_left_out() -> None:
    odd = cluster("gpu*|up|a100(80),h100&x,GPU_SKU:A100_SXM4,l40*2|gpu:4|64000|16\n")
    assert prefer_option(odd, JobSize()) == "--prefer=GPU_SKU:A100_SXM4"


def test_where_the_partition_is_not_known_features_of_all_that_can_hold_the_job() -> None:
    """Slurm refuses a job that prefers what no node of its partition has."""
    two = cluster(MIXED + "long|up|hopper|gpu:h100:8|512000|64\n")
    assert preferred_features(two, JobSize()) == ["hopper"]
    assert preferred_features(cluster(MIXED.replace("gpu|up|turing", "more|up|turing")), JobSize()) == []
    assert preferred_features(cluster(), JobSize()) == ["ampere", "hopper", "sm80", "sm86", "sm90"], "gpu alone can"


def _sinfo(directory: Path, text: str) -> None:
    (directory / "sinfo").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "sinfo").chmod(0o755)


def test_asking_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_cluster() is None
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "nodes").write_text(MIXED)
    _sinfo(tmp_path, f'[ "$1" = --version ] && echo slurm 23.02.1 || cat {tmp_path}/nodes')
    assert ask_cluster() == cluster()
    _sinfo(tmp_path, "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert ask_cluster() is None
    _sinfo(tmp_path, "exec sleep 20")
    assert ask_cluster(timeout=0.3) is None


def test_a_users_own_format_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SINFO_FORMAT", "%N")
    _sinfo(tmp_path, 'echo "slurm 23.02.1${SINFO_FORMAT}"')
    found = ask_cluster()
    assert found is not None
    assert found.version == (23, 2)
    _sinfo(tmp_path, '[ -z "${SINFO_FORMAT+x}" ] || exit 1; echo slurm 23.02.1')
    assert ask_cluster() is not None


def test_a_slurm_that_is_not_there_or_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no Slurm here (sinfo and sbatch not found): start the run" in str(why_not_reached())
    for program, body in (("sbatch", "exit 0"), ("sinfo", "echo first >&2; echo fatal: no host >&2; exit 1")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / program).chmod(0o755)
    assert "Slurm cannot be reached (sinfo: 'fatal: no host')" in str(why_not_reached())
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'debug up 1'\n")
    assert why_not_reached() is None
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexec /bin/sleep 9\n")
    assert why_not_reached(timeout=0.1) is None
