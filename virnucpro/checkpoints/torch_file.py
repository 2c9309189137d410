"""Files that ``torch.save`` wrote, read safely: nothing in them is ever executed, and their records are checked.

Tensors are what they seem: dense, of floating-point numbers that lie in the file.
"""

from __future__ import annotations

import argparse
import mmap
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import torch
from torch import Tensor

from virnucpro.base.atomic import GuardedFile
from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.checkpoints.files import what_it_is
from virnucpro.checkpoints.pickles import TooLarge, check_pickle

REPLACE = "get the file again (delete it if it was downloaded)"

LARGEST_EXPANSION = 20
"""Times a compressed archive may grow when it is read to memory; weights hardly grow at all (torch compresses none)."""


class Inert:
    """Stands for an object that people's training leaves beside the tensors, and knows nothing of what it was."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS: dict[type, tuple[str, ...]] = {
    OrderedDict: (
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    Inert: (
        *(f"pathlib{inner}.{name}" for inner in ("", "._local") for name in ("Path", "PosixPath", "WindowsPath")),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray", "datetime.datetime", "datetime.timedelta"),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any"),
        *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool")),
    ),
    set: ("builtins.set",),
    argparse.Namespace: ("argparse.Namespace",),
}
"""What is put in place of a class that a checkpoint names: plain containers and inert objects; never the class itself.

``argparse.Namespace`` is what fair-esm's files keep their settings in.
"""


def load_torch_file(path: Path, also: Mapping[Any, tuple[str, ...]] = MappingProxyType({})) -> Any:
    """What a file of ``torch.save`` holds, by torch's ``weights_only`` reader; tensors are mapped from the file.

    Args:
        also: further inert classes and the names that the file may call them by.

    Raises:
        UserError: cut short, damaged, no such file, or one that asks for code to be run.
    """
    stand_ins = {**_STAND_INS, **also}
    allowed: list[Any] = [(stand_in, name) for stand_in, names in stand_ins.items() for name in names]
    try:
        is_mapped = can_be_mapped(path)
        _check_pickles(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror}") from None
    except TooLarge:
        raise UserError(
            f"checkpoint {path} holds values within values that never end when they are written out, as no weights do: "
            "give one that holds tensors and settings alone"
        ) from None
    except pickle.UnpicklingError as error:
        foreign = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.[\w.]+)", str(error))
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) or foreign
        if named is None:
            raise _unreadable(path) from None
        raise UserError(
            f"checkpoint {path} asks for {short(named.group(1))[1:-1]}, which could run foreign code, so it is not "
            "read: give one that holds tensors and settings alone, such as torch.save(model.state_dict()) writes"
        ) from None
    except MemoryError:
        raise
    except Exception:
        # A damaged file can end in nearly any exception of torch's reader (RuntimeError, EOFError,
        # ValueError, KeyError, ...); none of them tells the user more than this.
        raise _unreadable(path) from None


def save_torch_file(path: Path, content: object) -> None:
    """Write a file of ``torch.save``; equal contents give equal files, whatever their names.

    Raises:
        OSError: it cannot be written.
    """
    # Through an open file, because torch.save puts the name of a path into the archive.
    with GuardedFile(path) as file:
        torch.save(content, cast(IO[bytes], file))
        file.finish()


def verify_archive(path: Path) -> None:
    """Read an archive from end to end and compare every record with its CRC-32.

    Raises:
        UserError: a record is damaged.
    """
    if not is_zip(path):
        return  # torch's format before 1.6 has no checksums, and safetensors has none
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is cut short or damaged ({error}): {REPLACE}") from None
    if damaged is not None:
        raise UserError(f"checkpoint {path} is damaged (checksum of its record {short(damaged)}): {REPLACE}")


def check_records(path: Path, tensors: Iterable[Tensor]) -> None:
    """Compare the size of each mapped tensor's storage with that of its record in the archive.

    The map is of the whole file, and torch takes the size from the pickle: where the record is shorter, the tensor
    runs on into the next one. (What is not mapped is copied out of the archive, whose reader compares sizes itself.)

    Args:
        tensors: strided ones on the CPU.

    Raises:
        UserError: a record has another size than its tensor.
    """
    if not can_be_mapped(path):
        return
    records = _stored_records(path)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    first = min(storages, default=0)
    for start in records:  # where the first storage may lie; its place in memory says where all others have to
        if all(records.get(place - first + start) == size for place, size in storages.items()):
            return
    raise UserError(f"checkpoint {path} is damaged (its records are not of its tensors' sizes): {REPLACE}")


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def can_be_mapped(path: Path) -> bool:
    """Whether the tensors lie uncompressed in a zip archive, torch's format since 1.6.

    Raises:
        UserError: it is compressed so much that reading it could fill the memory, or its records lie over each other.
    """
    if not is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    _check_places(path, records)
    if all(record.compress_type == zipfile.ZIP_STORED for record in records):
        return True
    size, expanded = path.stat().st_size, sum(record.file_size for record in records)
    if expanded > LARGEST_EXPANSION * size:
        raise UserError(
            f"checkpoint {path} would grow from {size:,} bytes to {expanded:,} when it is read, as no weights do: "
            "give one that torch.save wrote"
        )
    return False


def _check_places(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that two programs could read differently: records over each other, or two of one name.

    Raises:
        UserError: it is one.
    """
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.header_offset < end:
            raise UserError(f"checkpoint {path} is damaged (records of its archive lie over each other): {REPLACE}")
        end = record.header_offset + 30 + record.compress_size
    if end > path.stat().st_size:
        raise UserError(f"checkpoint {path} is cut short or damaged (a record is longer than the file): {REPLACE}")
    twice = [name for name, count in Counter(record.filename for record in records).items() if count > 1]
    if twice:
        raise UserError(f"checkpoint {path} is damaged (its archive holds {short(twice[0])} twice): {REPLACE}")


def _check_pickles(path: Path) -> None:
    """Follow the pickles of a file before they are read.

    Raises:
        TooLarge: see :func:`virnucpro.checkpoints.pickles.check_pickle`.
    """
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    check_pickle(archive.read(name))
    elif path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            place: int | None = 0
            for _ in range(OLD_PICKLES):
                place = None if place is None else check_pickle(data, place)


OLD_PICKLES = 5
"""Pickles that stand before the numbers in torch's format before 1.6."""


def _stored_records(path: Path) -> dict[int, int]:
    """The bytes of each record of an uncompressed archive, by their place in the file."""
    records = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            file.seek(record.header_offset + 26)  # the lengths of the name and of the extra field, which come next
            lengths = file.read(4)
            start = record.header_offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
            records[start] = record.file_size
    return records


def _unreadable(path: Path) -> UserError:
    reason = what_it_is(path)
    if reason is not None:
        return UserError(f"{path} is no PyTorch checkpoint: {reason}")
    return UserError(f"{path} is no PyTorch checkpoint, or is cut short or damaged: {REPLACE}")


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats of weights that are read."""


def plain_tensor(path: Path, name: str, tensor: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor itself, where it is a dense one of floating-point numbers that all lie in the file.

    Args:
        path, name: for messages.
        shape: what it has to have; None takes any.

    Raises:
        UserError: a sparse, quantised, nested or expanded one, one without numbers, or one of another shape or type.
    """
    tensor = Tensor.detach(tensor) if isinstance(tensor, Tensor) else tensor  # see _read_file
    reason = why_not_plain(tensor)
    if reason is not None:
        raise UserError(f"{path}: {short(name)} {reason}, and plain float16, bfloat16, float32 or float64 is read")
    if shape is not None and tuple(tensor.shape) != shape:
        raise UserError(
            f"{path} is damaged or of another model: {short(name)} has shape {short(tuple(tensor.shape))}, not {shape}"
        )
    found: Tensor = tensor
    return found


def why_not_plain(tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return "is no tensor"
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested:
        return "is a nested or wrapped tensor"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"is {'quantised' if tensor.is_quantized else tensor.layout}"
    if tensor.device.type != "cpu":
        return "is a tensor without numbers (of the meta device)"
    if tensor.dtype not in FLOATS:
        return f"is {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is expanded (it repeats the same numbers)"
    return None
