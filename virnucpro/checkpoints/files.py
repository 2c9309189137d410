"""Which files a checkpoint is made of: one, or a folder as HuggingFace's libraries write and cache it.

Files are opened in the named folder alone: neither an index nor a link leads out of it. Needs the standard library
alone, because the process that plans a run names weights by the content of these files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.text import short

CONFIG, ADAPTER_CONFIG, TOKENIZER = "config.json", "adapter_config.json", "tokenizer.json"

WEIGHTS = ("model", "pytorch_model")
"""What files of weights are called in a folder, safetensors first; an adapter's are called ``adapter_model``."""

SUFFIXES = (".safetensors", ".bin")
"""Safetensors before pickles: what is in both is read from the safer one."""

LARGEST_JSON = 1 << 24
"""Bytes of a configuration or an index; the index of ESM-2 15B has 100,000, what is parsed takes 20 times its size."""

_CACHED = "models--"
"""How the folder of a repository in the hub's cache begins."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files that a checkpoint is read from; no others are opened.

    Attributes:
        path: what was named, for messages.
        weights: the files of tensors, in order.
        index: names the file of each tensor, where there are several.
        config: the model's or adapter's configuration.
        tokenizer: what the model's tokens are, as HuggingFace's ``tokenizers`` keeps it.
    """

    path: Path
    weights: tuple[Path, ...]
    index: Path | None = None
    config: Path | None = None
    tokenizer: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        return iter((*self.weights, *filter(None, (self.index, self.config, self.tokenizer))))

    @property
    def name(self) -> str:
        """What to call the checkpoint: its repository in the hub's cache, its folder, or its file less the ending."""
        folder = self.weights[0].parent.resolve()
        if self.path.is_file() and self.path.stem not in WEIGHTS:
            return self.path.stem
        repository = folder.parents[1].name if _blobs(folder) else folder.name
        return repository.removeprefix(_CACHED) or "model"

    @property
    def hub(self) -> str:
        """Repository and commit, ``org/name@commit``, where this is a snapshot in the hub's cache; else empty."""
        folder = self.weights[0].parent.absolute()
        if not _blobs(folder):
            return ""
        return f"{folder.parents[1].name.removeprefix(_CACHED).replace('--', '/', 1)}@{folder.name}"

    def sha256(self, of_file: Callable[[Path], str]) -> str:
        """What stands for the contents: of one file its sha256, of several that of all their sha256s and names.

        Args:
            of_file: gives a file's sha256 in hex.
        """
        files = list(self)
        if len(files) == 1:
            return of_file(files[0])
        lines = "".join(f"{of_file(file)}  {file.name}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def weight_map(self) -> dict[str, str] | None:
        """The name of each tensor's file, as the index tells it."""
        return None if self.index is None else _weight_map(self.index)


def checkpoint_files(path: Path) -> CheckpointFiles:
    """The files of a checkpoint: of a folder with ``config.json``, of a repository in the hub's cache, or one file.

    ``config.json`` and ``tokenizer.json`` count for a file of their folder too, where that is called as transformers
    calls its files (``.safetensors``, ``.bin``).

    Raises:
        UserError: nothing there is a checkpoint, a shard is missing, or something leads out of the folder.
    """
    path = Path(path)
    if path.is_dir():
        folder = _snapshot(path)
        found = _in_folder(path, folder, WEIGHTS)
        adapter = _own_file(folder, ADAPTER_CONFIG)
        if found is None and adapter is not None:
            base = read_json(adapter).get("base_model_name_or_path")
            of = f" of {short(base)}" if isinstance(base, str) and base else ""
            raise UserError(
                f"{path} holds an adapter{of} without its base model: set `model:` to the base and `adapter:` to it"
            )
        if found is None:
            raise UserError(f"{path} holds no checkpoint: {_what_is_there(folder)}")
        if adapter is not None:
            raise UserError(
                f"{path} holds a model and an adapter: set `adapter:` to it too, or move {ADAPTER_CONFIG} away"
            )
        return replace(found, tokenizer=_own_file(folder, TOKENIZER))
    if not path.exists():
        raise UserError(f"no checkpoint at {path.absolute()}")
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give the path of a checkpoint")
    if path.name.endswith(".index.json"):
        return CheckpointFiles(path, _indexed(path.parent, path), path, _own_file(path.parent, CONFIG))
    if path.name in (CONFIG, ADAPTER_CONFIG):
        raise UserError(f"{path} is a configuration: give the path of its folder, {path.parent}")
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        raise UserError(f"{path} is one of {int(shard['count'])} parts of a checkpoint: give its folder, {path.parent}")
    if path.suffix not in SUFFIXES:
        return CheckpointFiles(path, (path,))
    return CheckpointFiles(
        path, (path,), config=_own_file(path.parent, CONFIG), tokenizer=_own_file(path.parent, TOKENIZER)
    )


def adapter_files(path: Path) -> CheckpointFiles:
    """The files of an adapter: ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin`` in a folder.

    Raises:
        UserError: as :func:`checkpoint_files`.
    """
    path = Path(path)
    if not path.is_dir():
        where = "is a file" if path.exists() else "does not exist"
        raise UserError(f"adapter {path} {where}: give the folder with {ADAPTER_CONFIG}")
    folder = _snapshot(path)
    found = _in_folder(path, folder, ("adapter_model",), ADAPTER_CONFIG)
    if found is None or found.config is None:
        missing = ADAPTER_CONFIG if found is not None else "adapter_model.safetensors (or .bin)"
        raise UserError(f"adapter {path} lacks {missing}: give the folder that peft's save_pretrained wrote")
    return found


def read_json(path: Path) -> Mapping[str, Any]:
    """A configuration or index: a mapping.

    Raises:
        UserError: it cannot be read, is too large, or is no such JSON.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} is larger than any configuration ({path.stat().st_size:,} bytes)")
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        with path.open("rb") as file:
            is_like_json = file.read(1) == b"{"
        reason = None if is_like_json else what_it_is(path)
        if reason is None:
            depth = "it is nested too deeply" if isinstance(error, RecursionError) else short(str(error))[1:-1]
            reason = f"it is not JSON ({depth}); get the file again"
        raise UserError(f"{path} is damaged: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no mapping; get the file again")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Entries of a JSON mapping; two of one name would mean one thing here and another elsewhere."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"it holds {Counter(name for name, _ in pairs).most_common(1)[0][0]} twice")
    return found


def what_it_is(path: Path) -> str | None:
    """What a file is that is certainly no file of tensors, with the way out, as a clause; None where it may be one."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty: get the file again"
    for signature, words in _SIGNATURES.items():
        if start.startswith(signature):
            return words
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page (HTML; of a login, or an error?): download the file again"
    if start[257:262] == b"ustar":
        return "it is packed (tar): unpack it and give the path of what was in it"
    return None


_PACKED = "it is packed: unpack it and give the path of what was in it"
_SIGNATURES = {
    b"version https://git-lfs": "it is a Git LFS pointer, which stands for the file: run `git lfs pull` in its folder",
    b"\x89HDF": "it is HDF5, as Keras writes it: give a checkpoint of PyTorch or safetensors",
    b"GGUF": "it is GGUF, as llama.cpp reads it: give a checkpoint of PyTorch or safetensors",
    b"\x1f\x8b": _PACKED,
    b"\xfd7zXZ": _PACKED,
    b"BZh": _PACKED,
    b"\x28\xb5\x2f\xfd": _PACKED,
    b"7z\xbc\xaf": _PACKED,
    b"Rar!": _PACKED,
    b">": "it looks like FASTA, which belongs to `samples:`",
    b"{": "it is JSON: give the checkpoint itself, or its folder",
    b"\x93NUMPY": "it is a NumPy array: give a checkpoint of PyTorch or safetensors",
}


def _in_folder(path: Path, folder: Path, stems: tuple[str, ...], config_name: str = CONFIG) -> CheckpointFiles | None:
    """What a folder holds under the names that transformers and peft use; safetensors rather than pickles."""
    config = _own_file(folder, config_name)
    for stem, suffix in zip(stems if len(stems) > 1 else stems * 2, SUFFIXES, strict=True):
        whole = _own_file(folder, stem + suffix)
        if whole is not None:
            return CheckpointFiles(path, (whole,), config=config)
        index = _own_file(folder, f"{stem}{suffix}.index.json")
        if index is not None:
            return CheckpointFiles(path, _indexed(folder, index), index, config)
        shards = _shards(folder, stem, suffix)
        if shards:
            return CheckpointFiles(path, shards, config=config)
    return None


def _indexed(folder: Path, index: Path) -> tuple[Path, ...]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if name in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
            raise UserError(f"{index} names the file {short(name)}, which is not in its folder: nothing is read there")
    return _all_of(folder, names, index.name)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{index} is damaged: its weight_map does not name files; get the file again")
    return found


def _shards(folder: Path, stem: str, suffix: str) -> tuple[Path, ...]:
    """The shards of a set that has no index; each is called after its number and how many there are."""
    counts = {
        int(match["count"])
        for path in folder.iterdir()
        if path.suffix == suffix and (match := _SHARD.fullmatch(path.name)) and match["stem"] == stem
    }
    if not counts:
        return ()
    if len(counts) > 1:
        raise UserError(f"{folder} holds shards of several checkpoints (of {min(counts)} and of {max(counts)} parts)")
    count = counts.pop()
    return _all_of(
        folder, [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)], "its shards"
    )


def _all_of(folder: Path, names: list[str], said_by: str) -> tuple[Path, ...]:
    found = [_own_file(folder, name) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{folder} lacks {short(missing[0])}{others} of the {len(names)} files of this checkpoint ({said_by}): "
            "download what is missing"
        )
    return tuple(path for path in found if path is not None)


def _own_file(folder: Path, name: str) -> Path | None:
    """A file of a folder, or None where there is none; links are followed inside of the folder and to the hub's blobs.

    Raises:
        UserError: it is a link that leads elsewhere or nowhere, or no regular file.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    try:
        home, target = folder.resolve(), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it leads in a circle"
        raise UserError(f"{path} is a link that cannot be followed ({reason}): download the file again") from None
    places = [home, *filter(None, [_blobs(home)])]
    if not any(target.is_relative_to(place) for place in places):
        raise UserError(
            f"{path} is a link to {target}, outside of its folder, which is not followed: copy the file there"
        )
    if not target.is_file():
        raise UserError(f"{path} is no regular file")
    return path


def _blobs(snapshot: Path) -> Path | None:
    """Where the hub's cache keeps the files of a snapshot: ``models--org--name/{blobs,refs,snapshots/<commit>}``."""
    is_one = snapshot.parent.name == "snapshots" and snapshot.parents[1].name.startswith(_CACHED)
    return snapshot.parents[1] / "blobs" if is_one else None


def _snapshot(folder: Path) -> Path:
    """The snapshot that a repository's folder in the hub's cache means: that of ``main``, or the only one."""
    snapshots = folder / "snapshots"
    if not folder.absolute().name.startswith(_CACHED) or not snapshots.is_dir():
        return folder
    names = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip()[:100] if main.is_file() else ""
    if commit in names:
        return snapshots / commit
    if len(names) == 1:
        return snapshots / names[0]
    raise UserError(f"{folder} holds {len(names)} snapshots and none is main: give the path of one in {snapshots}")


def _what_is_there(folder: Path) -> str:
    """What a folder without a checkpoint holds, with the way out."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (*SUFFIXES, ".pt", ".pth", ".ckpt"))
    if names:
        others = f" (of {len(names)})" if len(names) > 1 else ""
        return f"give the path of the file in it that is one, such as {short(names[0])}{others}"
    foreign = [name for name in ("tf_model.h5", "flax_model.msgpack", "model.onnx") if (folder / name).exists()]
    if foreign:
        return f"{foreign[0]} is not of PyTorch: give a checkpoint of PyTorch or safetensors"
    return "neither model.safetensors nor pytorch_model.bin is in it"
