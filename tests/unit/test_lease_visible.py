"""What CUDA_VISIBLE_DEVICES means, against the driver's list of GPUs (the text that nvidia-smi -L prints)."""

from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.base.errors import UserError
from virnucpro.cuda.visible import (
    Gpu,
    VisibleDevice,
    device_nodes,
    list_gpus,
    parse_gpu_list,
    split_visible,
    visible_devices,
)

LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89ffff-1111-2222-3333-444455556666)
  MIG 3g.20gb     Device  0: (UUID: MIG-3f3b4a6e-0000-0000-0000-000000000001)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-GPU-5c89ffff-1111-2222-3333-444455556666/7/0)
GPU 2: NVIDIA GeForce RTX 2080 Ti (UUID: GPU-b4f7e1aa-9999-8888-7777-666655554444)
"""
A, C = "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f", "GPU-b4f7e1aa-9999-8888-7777-666655554444"
M1, M2 = "MIG-3f3b4a6e-0000-0000-0000-000000000001", "MIG-GPU-5c89ffff-1111-2222-3333-444455556666/7/0"


@pytest.fixture
def gpus() -> list[Gpu]:
    return parse_gpu_list(LISTING)


def tokens(visible: str | None, gpus: list[Gpu] | None) -> list[str]:
    return [device.token for device in visible_devices(visible, gpus)]


def test_listing(gpus: list[Gpu]) -> None:
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert gpus[0] == Gpu(0, "NVIDIA A100-SXM4-40GB", A)
    assert gpus[1].units == (M1, M2)
    assert gpus[2].units == (C,)
    assert parse_gpu_list("No devices found.\n") == []


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("", []),
        ("NoDevFiles", []),  # Slurm's word for "none" in older versions
        ("-1", []),
        ("0,1", ["0", "1"]),
        (" 2 , 0", ["2", "0"]),
        ("01", ["1"]),
        ("1,-1,0", ["1"]),
        ("1,,0", ["1"]),
        ("1gpu,2ampere", ["1", "2"]),
        ("0,GPU-5c89852c", ["0"]),
        ("GPU-5c89852c,0,GPU-b4", ["GPU-5c89852c"]),
        ("MIG-a,GPU-b", ["MIG-a"]),
        ("1,1", []),
        ("GPU-a,GPU-a", []),
    ],
)
def test_entries_that_cuda_honours(value: str, entries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_visible(value) == entries
    # The same list by torch's own re-statement of CUDA's rules.
    from torch.cuda import _parse_visible_devices

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [str(entry) for entry in _parse_visible_devices()] == entries


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A, M1, M2, C]),
        ("", []),
        ("0", [A]),
        ("2,0", [C, A]),
        ("1", [M1]),  # CUDA opens the first slice of a GPU that is sliced
        ("0,7,2", [A]),  # the list ends at the first entry that does not exist
        ("7", []),
        ("GPU-5c898", [A]),
        ("GPU-B4F7", [C]),
        ("GPU-5c89", []),  # two GPUs begin so
        (f"{C},{A}", [C, A]),
        ("GPU-b4f7,GPU-b4f7e1", []),  # one device named twice
        (M2, [M2]),
        (f"{M1},{M2}", [M1, M2]),
        ("MIG-other", []),
    ],
)
def test_devices_of_a_process(visible: str | None, expected: list[str], gpus: list[Gpu]) -> None:
    assert tokens(visible, gpus) == expected


def test_one_device_has_one_identity_however_it_is_named(gpus: list[Gpu]) -> None:
    named = [visible_devices(value, gpus) for value in ("2", "GPU-b4", C, C.lower().replace("gpu", "GPU"))]
    assert {tuple(device.identity for device in devices) for devices in named} == {(C.lower(),)}
    assert visible_devices(None, gpus)[-1] == named[0][0]


def test_without_the_driver_entries_are_taken_at_their_word() -> None:
    assert tokens(None, None) == []
    assert visible_devices(None, None, 2) == [VisibleDevice("0", "unknown-0"), VisibleDevice("1", "unknown-1")]
    assert visible_devices("0,MIG-a", None, 2) == [VisibleDevice("0", "unknown-0")]
    assert visible_devices(A, None, 2) == visible_devices(A, parse_gpu_list(LISTING)), "a whole UUID is one lock"
    assert tokens("", None) == []


def test_devices_to_open(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert device_nodes(tmp_path) == 3
    assert device_nodes(tmp_path / "nowhere") == 0


def _program(directory: Path, text: str) -> None:
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_asking_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "list").write_text(LISTING)
    _program(tmp_path, f'[ "$*" = -L ] && cat {tmp_path}/list')
    found = list_gpus()
    assert found is not None
    assert [gpu.uuid for gpu in found] == [gpu.uuid for gpu in parse_gpu_list(LISTING)]
    _program(tmp_path, "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver'; exit 9")
    driver = tmp_path / "gpus"
    assert list_gpus(driver=driver) is None
    for address, uuid in (("0000:c1:00.0", C), ("0000:07:00.0", A)):
        (driver / address).mkdir(parents=True)
        text = f"Model: \t\t NVIDIA A100\nIRQ:   \t\t 195\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n"
        (driver / address / "information").write_text(text)
    assert list_gpus(driver=driver) == [Gpu(0, "", A), Gpu(1, "", C)]
    (driver / "0000:07:00.0" / "information").write_text("GPU UUID: \t GPU-????????-????-????-????-????????????\n")
    assert list_gpus(driver=driver) is None
    _program(tmp_path, "exec sleep 30")
    with pytest.raises(UserError, match="no answer within 1 seconds"):
        list_gpus(timeout=0.5 + 0.1)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert list_gpus(driver=tmp_path / "nowhere") is None
