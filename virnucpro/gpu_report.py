"""What the GPUs of this machine are and can do, for people and for ``results/gpu.json``."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from virnucpro.base.atomic import atomic_path
from virnucpro.cuda.attention_utils import attention_support, first_sentence
from virnucpro.cuda.devices import job_devices
from virnucpro.engine.run import LOWEST_BUDGET, bytes_per_token, default_budget
from virnucpro.models.families import FAMILIES
from virnucpro.models.precision import dtype_name, resolve_precision

Report = list[dict[str, Any]]


def detect_gpu(output_json: Path, logger: logging.Logger, *, require_gpu: bool = False) -> Report:
    """Ask every CUDA device that this process sees, write the report, and log it as a table.

    Each device is asked for itself, so a mixed machine is told right; a device that fails is reported
    with its error. Without a GPU the report has one entry, the CPU. The file is replaced atomically.

    Raises:
        UserError: no GPU can be used, and one is required.
    """
    job_devices(None, require_gpu=require_gpu)
    report = gpu_report()
    with atomic_path(Path(output_json)) as beside:
        beside.write_text(json.dumps(report, indent=2) + "\n")
    for line in format_report(report).splitlines():
        logger.info(line)
    return report


def gpu_report() -> Report:
    """One entry for each visible device (see :func:`detect_gpu`)."""
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:
        count = 0
    if not count:
        support = attention_support()
        return [_common() | {"device": "cpu", "name": _cpu_name(), "attention": support.implementation}
                | {"reason": support.reason, "precision": "float32"}]  # fmt: skip
    driver = _driver_version()
    return [_common() | {"driver": driver} | _device_entry(index) for index in range(count)]


def format_report(report: Report) -> str:
    """The report as a table with a line of advice for each device."""
    rows = [("device", "name", "capability", "memory", "driver", "torch", "attention", "precision")]
    notes = []
    for entry in report:
        memory = entry.get("memory_bytes")
        rows.append(
            (
                entry["device"],
                entry.get("name", "?"),
                entry.get("capability", "-"),
                f"{memory / 2**30:.0f} GiB" if memory else "-",
                entry.get("driver") or "-",
                entry["torch"],
                entry.get("attention", "-"),
                entry.get("precision", "-"),
            )
        )
        notes.append(f"{entry['device']}: {entry.get('error') or entry.get('reason')}")
        if entry.get("token_budget"):
            fits = ", ".join(f"{model} ({tokens:,})" for model, tokens in entry["token_budget"].items())
            notes.append(f"{entry['device']}: models that fit, with the tokens of a batch: {fits}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(table + notes)


def _common() -> dict[str, Any]:
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "host": platform.node()}


def _device_entry(index: int) -> dict[str, Any]:
    device = torch.device("cuda", index)
    entry: dict[str, Any] = {"device": str(device)}
    try:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        dtype = resolve_precision("auto", device)
        support = attention_support(device)
        entry |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": total,
            "free_bytes": free,
            "multiprocessors": properties.multi_processor_count,
            "attention": support.implementation,
            "reason": support.reason,
            "probe_difference": support.difference,
            "precision": dtype_name(dtype),
            "token_budget": advised_budgets(free, device, dtype),
        }
    except Exception as error:
        entry["error"] = f"cannot be used: {first_sentence(error)}"
    return entry


def advised_budgets(free_bytes: int, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """For each model that fits into ``free_bytes`` beside a smallest batch: the tokens of a batch."""
    found = {}
    for family in FAMILIES:
        for name, sizes in family.models.items():
            left = free_bytes - sizes.parameters * dtype.itemsize
            if left * 0.7 >= LOWEST_BUDGET * bytes_per_token(sizes.embed_dim, 1, dtype):
                found[name] = default_budget(sizes.embed_dim, device, 1, dtype, free_bytes=left)
    return found


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())}, {torch.get_num_threads()} threads"
