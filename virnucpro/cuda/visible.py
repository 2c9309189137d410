"""Which GPUs this process may use, told without starting CUDA.

CUDA reads ``CUDA_VISIBLE_DEVICES`` once, when it starts, so a job that wants to pick a device must
know what there is before that. What the driver has comes from ``nvidia-smi -L``, or where that does not
work from the driver's files under /proc; what the process may use of it is the inherited variable, read as
CUDA reads it (CUDA C++ programming guide, "CUDA environment variables").
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virnucpro.base.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"

NUMBERED = "unknown-"
"""How the identity of a GPU begins that is known by its number alone: on this host, in the driver's order."""

_GPU_LINE = re.compile(r"^GPU (?P<index>\d+): (?P<name>.*) \(UUID: (?P<uuid>GPU-[^)]+)\)$")
_MIG_LINE = re.compile(r"^\s+MIG .*\(UUID: (?P<uuid>MIG-[^)]+)\)$")
_DRIVER_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)
_LEADING_NUMBER = re.compile(r"^[+-]?\d+")


@dataclass(frozen=True)
class Gpu:
    """One physical GPU as the driver numbers it (PCI bus order), with its MIG slices if it has any."""

    index: int
    name: str
    uuid: str
    mig: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """What CUDA can open on it: its MIG slices, or itself."""
        return self.mig or (self.uuid,)


@dataclass(frozen=True)
class VisibleDevice:
    """One device that a job can be given.

    ``token`` is what CUDA understands in ``CUDA_VISIBLE_DEVICES``; ``identity`` is the same text for
    the same physical device, however it was named. ``coarser`` are the identities that it has for a process that can
    tell less: the whole GPU of a MIG slice, and the GPU's number where the driver does not answer.
    """

    token: str
    identity: str
    coarser: tuple[str, ...] = field(default=(), compare=False)


def parse_gpu_list(text: str) -> list[Gpu]:
    """The GPUs in the output of ``nvidia-smi -L``."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        if gpu := _GPU_LINE.match(line.rstrip()):
            gpus.append(Gpu(int(gpu["index"]), gpu["name"], gpu["uuid"]))
        elif (mig := _MIG_LINE.match(line.rstrip())) and gpus:
            last = gpus[-1]
            gpus[-1] = Gpu(last.index, last.name, last.uuid, (*last.mig, mig["uuid"]))
    return gpus


def list_gpus(*, timeout: float = 60.0, driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[Gpu] | None:
    """The GPUs of this machine that the driver lets us see.

    Args:
        driver: where the driver has a folder for each GPU; asked where ``nvidia-smi`` is missing or fails.

    Returns:
        None where neither can tell, an empty list where there is no GPU.

    Raises:
        UserError: when ``nvidia-smi`` does not answer within ``timeout`` seconds, as happens when a
            GPU has fallen off the bus; CUDA would hang in the same way.
    """
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=timeout, check=False)
            if done.returncode == 0:
                return parse_gpu_list(done.stdout)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"nvidia-smi gave no answer within {timeout:.0f} seconds: the GPU driver of this machine hangs; "
                "reset the GPU or reboot, or set CUDA_VISIBLE_DEVICES= (empty) to run on the CPU"
            ) from None
        except OSError:
            pass
    return _gpus_of_driver(driver)


def _gpus_of_driver(folder: Path) -> list[Gpu] | None:
    """The GPUs by the driver's files, in the order of their PCI addresses, as ``nvidia-smi`` numbers them."""
    try:
        texts = [(gpu / "information").read_text() for gpu in sorted(folder.iterdir())]
    except OSError:
        return None
    uuids = [_DRIVER_UUID.search(text) for text in texts]
    # One that has not been started yet has question marks for a UUID.
    return [Gpu(index, "", uuid[1]) for index, uuid in enumerate(uuids) if uuid] if all(uuids) else None


def device_nodes(folder: Path = Path("/dev")) -> int:
    """How many GPUs this process could open: CUDA needs /dev/nvidia0, /dev/nvidia1, ..."""
    return sum(path.name[6:].isdecimal() for path in folder.glob("nvidia*"))


def has_gpu() -> bool:
    """Whether a job that starts here finds a GPU, as far as can be told without starting CUDA."""
    try:
        return bool(visible_devices(os.environ.get(VISIBLE), list_gpus(), device_nodes()))
    except UserError:
        return True  # a driver that hangs has one


def split_visible(value: str) -> list[str]:
    """The entries of ``CUDA_VISIBLE_DEVICES`` that CUDA would honour, in order.

    As CUDA does it (and ``torch.cuda._parse_visible_devices``, which re-states it): the first entry
    decides the kind (numbers, ``GPU-`` or ``MIG-``); the list ends before the first entry that is
    negative or of another kind; a number may have letters behind it; an entry named twice leaves
    nothing.
    """
    entries: list[str] = []
    kind = next((prefix for prefix in ("GPU-", "MIG-") if value.strip().startswith(prefix)), None)
    for raw in value.split(","):
        entry = raw.strip()
        if kind is None:
            number = _LEADING_NUMBER.match(entry)
            if number is None or int(number[0]) < 0:
                break
            entry = str(int(number[0]))
        elif not entry.startswith(kind):
            break
        if entry in entries:
            return []
        entries.append(entry)
    return entries


def visible_devices(visible: str | None, gpus: Sequence[Gpu] | None, nodes: int = 0) -> list[VisibleDevice]:
    """The devices that a process with this ``CUDA_VISIBLE_DEVICES`` may use.

    Args:
        visible: the variable's value, None when it is not set.
        gpus: what ``list_gpus`` found; None when it could not be told.
        nodes: how many GPUs there are where ``gpus`` is None.

    Returns:
        Devices in the variable's order (the driver's when it is not set). A number counts as the
        driver does (``nvidia-smi``, PCI bus order) and is turned into the GPU's UUID, because CUDA's
        own numbering puts the fastest GPU first unless ``CUDA_DEVICE_ORDER`` says otherwise. Where
        the GPUs cannot be told, entries are taken at their word.
    """
    if gpus is None:
        entries = [str(number) for number in range(nodes)] if visible is None else split_visible(visible)
        return [VisibleDevice(one, _numbered(one) if one.isdecimal() else one.lower()) for one in entries]
    if visible is None:
        return [_device(unit, gpus) for gpu in gpus for unit in gpu.units]
    entries = split_visible(visible)
    devices: list[VisibleDevice] = []
    for entry in entries:
        unit = _find_unit(entry, gpus)
        if unit is None:  # CUDA shows the devices before the first invalid entry, and no more
            break
        if any(device.identity == unit.lower() for device in devices):
            return []
        devices.append(_device(unit, gpus))
    return devices


def _device(unit: str, gpus: Sequence[Gpu]) -> VisibleDevice:
    gpu = next(gpu for gpu in gpus if unit in gpu.units)
    coarser = [gpu.uuid.lower()] if unit in gpu.mig else []
    return VisibleDevice(unit, unit.lower(), (*coarser, _numbered(gpu.index)))


def _numbered(number: str | int) -> str:
    """The identity of a GPU of which nothing but its number is known."""
    return f"{NUMBERED}{number}"


def _find_unit(entry: str, gpus: Sequence[Gpu]) -> str | None:
    """The GPU or MIG slice that an entry names: by number, by UUID or by its unique beginning."""
    if entry.isdecimal():
        return next((gpu.units[0] for gpu in gpus if gpu.index == int(entry)), None)
    if entry.startswith("MIG-"):
        return next((unit for gpu in gpus for unit in gpu.mig if unit.lower() == entry.lower()), None)
    found = [gpu.units[0] for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())]
    return found[0] if len(found) == 1 else None
