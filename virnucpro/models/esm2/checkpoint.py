"""Read a checkpoint in fair-esm's layout, safely: nothing in it is ever executed, and everything is checked."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import PREFIXES, Architecture, contact_shapes, embedding_shapes, lm_head_shapes

_REPLACE = "get the file again (delete it if it was downloaded)"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST = {"encoder_layers": 1000, "encoder_embed_dim": 100_000, "encoder_attention_heads": 1000}


@dataclass(frozen=True)
class Checkpoint:
    """An ESM-2 checkpoint as read: its sizes, and its tensors by fair-esm's prefix-free names."""

    architecture: Architecture
    state: dict[str, Tensor]


def load_checkpoint(path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Read a whole checkpoint for fair-esm's ``ESM2``, LM head included, memory-mapped.

    The contact head's tensors are added when ``NAME-contact-regression.pt`` is beside the file.

    Returns:
        The sizes, and tensors of the stored dtype named as in ``ESM2.state_dict()``; without the
        contact head when there is no such file.

    Raises:
        UserError: as :func:`read_checkpoint`.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    state = dict(checkpoint.state)
    beside = path.with_name(f"{path.stem}-contact-regression.pt")
    if beside.is_file():
        content = _load(beside)
        model = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(model, Mapping):
            raise UserError(f"{beside} is no contact-regression file of fair-esm: {_REPLACE}, or move it away")
        contact = _without_prefix(beside, model)
        shapes = contact_shapes(checkpoint.architecture)
        _check_tensors(beside, contact, shapes, shapes)
        state.update(contact)
    return checkpoint.architecture, state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read an ESM-2 checkpoint and compare every name, shape and dtype in it with what its sizes ask for.

    ``torch.load`` is used with ``weights_only=True`` and ``argparse.Namespace`` allowed, because the
    released files hold their settings in one. Tensors are memory-mapped and not looked at.

    Raises:
        UserError: no such file, cut short, damaged, unsafe, another model, or not as its sizes say.
    """
    path = Path(path)
    content = _load(path)
    architecture = _architecture(path, content)
    state = _without_prefix(path, content["model"])
    required = {**embedding_shapes(architecture), **lm_head_shapes(architecture)}
    _check_tensors(path, state, required, {**required, **contact_shapes(architecture)})
    return Checkpoint(architecture, state)


def verify_archive(path: Path) -> None:
    """Read a checkpoint from end to end and compare every record with its CRC-32.

    Raises:
        UserError: a record is damaged.
    """
    if not _is_zip(path):
        return  # torch's format before 1.6 has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is cut short or damaged ({error}): {_REPLACE}") from None
    if damaged is not None:
        raise UserError(f"checkpoint {path} is damaged (checksum of its record {damaged}): {_REPLACE}")


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path.absolute()}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except PermissionError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        foreign = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.[\w.]+)", str(error))
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) or foreign
        if named is None:
            raise UserError(f"{path} is no PyTorch checkpoint, or is cut short or damaged: {_REPLACE}") from None
        raise UserError(
            f"checkpoint {path} asks for {named.group(1)}, which could run foreign code, so it is not read: "
            "give one that holds tensors and settings alone, as fair-esm's do"
        ) from None
    except Exception:
        # A damaged file can end in nearly any exception of torch's reader (RuntimeError, EOFError,
        # ValueError, KeyError, ...); none of them tells the user more than this.
        raise UserError(f"{path} is no PyTorch checkpoint, or is cut short or damaged: {_REPLACE}") from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _can_be_mapped(path: Path) -> bool:
    """Whether the tensors lie uncompressed in a zip archive, torch's format since 1.6."""
    if not _is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _check_records(path: Path, state: Mapping[str, Tensor]) -> None:
    """Compare the size of each mapped tensor's storage with that of its record in the archive.

    The map is of the whole file, and torch takes the size from the pickle: where the record is shorter, the tensor
    runs on into the next one. (What is not mapped is copied out of the archive, whose reader compares sizes itself.)
    """
    if not _can_be_mapped(path):
        return
    records = _stored_records(path)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    first = min(storages, default=0)
    for start in records:  # where the first storage may lie; its place in memory says where all others have to
        if all(records.get(place - first + start) == size for place, size in storages.items()):
            return
    raise UserError(f"checkpoint {path} is damaged (its records are not of its tensors' sizes): {_REPLACE}")


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


def _architecture(path: Path, content: Any) -> Architecture:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, not an ESM-2 checkpoint in fair-esm's layout")
    if "args" in content:
        arch = getattr(content["args"], "arch", "unknown")
        raise UserError(f"{path} is an older ESM model (architecture {arch}), not ESM-2")
    settings = content.get("cfg")
    settings = settings.get("model") if isinstance(settings, Mapping) else None
    if settings is None or not isinstance(content.get("model"), Mapping):
        raise UserError(
            f"{path} is no ESM-2 checkpoint in fair-esm's layout: it has no settings (cfg.model) beside its tensors"
        )
    values = settings if isinstance(settings, Mapping) else vars(settings)
    sizes = []
    for name, largest in _LARGEST.items():
        value = values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            raise UserError(f"{path} is no ESM-2 checkpoint in fair-esm's layout: its setting {name} is {value!r}")
        sizes.append(value)
    dropout = values.get("token_dropout")
    if not isinstance(dropout, bool):
        raise UserError(f"{path} is no ESM-2 checkpoint in fair-esm's layout: its setting token_dropout is {dropout!r}")
    layers, embed_dim, heads = sizes
    if embed_dim % (2 * heads):
        raise UserError(f"{path}: {embed_dim} channels cannot be shared by {heads} heads of even size")
    return Architecture(layers, embed_dim, heads, dropout)


def _without_prefix(path: Path, model: Mapping[Any, Any]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in model.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path} is no ESM-2 checkpoint in fair-esm's layout: {name!r} is not a tensor")
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        short = name.removeprefix(prefix)
        if short in state:
            raise UserError(f"{path} holds two tensors {short}")
        state[short] = tensor
    return state


def _check_tensors(
    path: Path,
    state: Mapping[str, Tensor],
    required: Mapping[str, tuple[int, ...]],
    allowed: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in required if name not in state]
    if missing:
        raise UserError(f"{path} is not a complete ESM-2 checkpoint: {_some(missing)} missing")
    unknown = [name for name in state if name not in allowed]
    if unknown:
        raise UserError(f"{path} is not ESM-2: it holds {_some(unknown)} that ESM-2 does not have")
    for name, tensor in state.items():
        if tuple(tensor.shape) != allowed[name]:
            raise UserError(
                f"{path} is damaged or not ESM-2: {name} has shape {tuple(tensor.shape)}, "
                f"and its settings ask for {allowed[name]}"
            )
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}; plain float16, bfloat16 or float32 is read"
            )
    _check_records(path, state)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other tensors"
