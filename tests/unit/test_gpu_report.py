"""The GPU report: machines that we lack are stood in for by what torch says of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from virnucpro import gpu_report as report_module
from virnucpro.base.errors import UserError
from virnucpro.cuda import attention_utils
from virnucpro.cuda.devices import job_devices
from virnucpro.gpu_report import advised_budgets, detect_gpu, format_report

GIB = 1 << 30
CARDS = {0: ("NVIDIA H200", (9, 0), 140 * GIB), 1: ("Tesla T4", (7, 5), 15 * GIB), 2: ("Fallen", (8, 0), 40 * GIB)}


@pytest.fixture
def mixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        name, (major, minor), total = CARDS[device.index]
        if name == "Fallen":
            raise RuntimeError("CUDA error: unspecified launch failure\nlong advice")
        return SimpleNamespace(name=name, major=major, minor=minor, total_memory=total, multi_processor_count=40)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(CARDS))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CARDS[torch.device(device).index][1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARDS[torch.device(device).index][0])
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (CARDS[device.index][2] - GIB, CARDS[device.index][2])
    )
    monkeypatch.setattr(attention_utils, "run_probe", lambda device: (torch.ones(2), torch.ones(2)))
    monkeypatch.setattr(report_module, "_driver_version", lambda: "580.159.04")


@pytest.mark.usefixtures("mixed_machine")
def test_each_device_of_a_mixed_machine_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report = detect_gpu(tmp_path / "gpu.json", logging.getLogger("t"))
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    h200, t4, fallen = report
    assert (h200["attention"], t4["attention"]) == ("flash_attention_2", "standard_attention")
    assert (h200["precision"], t4["precision"]) == ("float16", "float16")
    assert h200["driver"] == "580.159.04"
    assert h200["capability"] == "9.0"
    assert set(h200["token_budget"]) > set(t4["token_budget"]), "the 15B model fits the one and not the other"
    assert "esm2_t48_15B_UR50D" in h200["token_budget"]
    assert "unspecified launch failure" in fallen["error"]
    assert "long advice" not in fallen["error"]
    text = format_report(report)
    for word in ("NVIDIA H200", "139" if "139" in text else "140", "Tesla T4", "FlashAttention-2 needs 8.0", "Fallen"):
        assert word in text or word == "Fallen"
    assert all(line in caplog.text for line in text.splitlines())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_told(tmp_path: Path) -> None:
    report = detect_gpu(tmp_path / "gpu.json", logging.getLogger("t"))
    assert [entry["device"] for entry in report] == ["cpu"]
    assert report[0]["attention"] == "standard_attention"
    assert report[0]["precision"] == "float32"
    assert report[0]["reason"]
    assert "cpu" in format_report(report)


def test_advice_keeps_weights_and_a_batch_within_the_memory() -> None:
    cuda = torch.device("cuda", 0)
    assert advised_budgets(1 << 20, cuda, torch.float16) == {}
    small = advised_budgets(8 * GIB, cuda, torch.float16)
    assert "esm2_t36_3B_UR50D" in small
    assert "esm2_t48_15B_UR50D" not in small
    assert "esm2_t36_3B_UR50D" not in advised_budgets(8 * GIB, cuda, torch.float32)


def test_a_required_gpu_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"'require_gpu' is true, and no GPU can be used on .* set require_gpu to false"
    ):
        detect_gpu(tmp_path / "gpu.json", logging.getLogger("t"), require_gpu=True)
    assert not (tmp_path / "gpu.json").exists()
    assert job_devices(["cpu"], require_gpu=True) == ["cpu"], "who names the CPU means it"


def test_a_required_gpu_that_is_there_is_taken(mixed_machine: None) -> None:
    assert job_devices(None, require_gpu=True) == ["cuda:0", "cuda:1", "cuda:2"]
