"""Repositories of huggingface.co: their ids, and where the hub's own library caches them.

Needs the standard library alone: the process that plans a run knows ids, and a cached repository is read as it lies.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.checkpoints.files import ADAPTER_CONFIG, CONFIG, SUFFIXES, TOKENIZER, WEIGHTS, CheckpointFiles

_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,199}))?", re.ASCII
)

LONGEST_ID = 96
"""Letters of a repository's id, as the hub has it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubId:
    """A repository such as ``facebook/esm2_t6_8M_UR50D`` and, after an ``@``, the revision: main, a tag, a commit."""

    repository: str
    revision: str = "main"

    @classmethod
    def of(cls, text: str) -> HubId | None:
        """The id that a text is; None where it is none, such as a path of more than two parts or to a file."""
        found = _ID.fullmatch(text)
        if found is None or ".." in text:
            return None
        repository = found["repository"]
        if len(repository) > LONGEST_ID or repository.endswith((".pt", ".pth", ".ckpt", *SUFFIXES)):
            return None
        return cls(repository, found["revision"] or "main")

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"

    @property
    def file_name(self) -> str:
        """The id as a part of a file's name; different ids give different names."""
        name = self.repository.replace("/", "--")
        if self.revision == "main":
            return name
        return f"{name}--{hashlib.sha256(self.revision.encode()).hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        """Where the hub's library caches the repository (its documentation, "Understand caching")."""
        return hub_cache() / f"models--{self.repository.replace('/', '--')}"

    def snapshot(self) -> Path | None:
        """The cached files of the revision, as far as they are there; None where there are none."""
        commit, reference = self.revision, self.folder / "refs" / self.revision
        if reference.is_file():
            commit = reference.read_text(encoding="utf-8", errors="replace").strip()[:100]
        snapshot = self.folder / "snapshots" / commit
        return snapshot if "/" not in commit and commit not in ("", ".", "..") and snapshot.is_dir() else None


def hub_cache() -> Path:
    """The folder of the hub's cache: ``HF_HUB_CACHE``, or ``hub`` in ``HF_HOME`` or in huggingface's cache folder."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(named)).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")  # noqa: PTH118 - it may begin with ~
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_files(hub: HubId, find: Callable[[Path], CheckpointFiles]) -> CheckpointFiles | None:
    """A repository's files in the hub's cache; None where they are not, or not all of them.

    Args:
        find: :func:`virnucpro.checkpoints.files.checkpoint_files` or ``adapter_files``.
    """
    snapshot = hub.snapshot()
    if snapshot is None:
        return None
    try:
        return find(snapshot)
    except UserError:
        return None  # a download that has not ended, or one of other files


def wanted_files(names: Iterable[str], *, adapter: bool = False) -> list[str]:
    """Which of a repository's files a checkpoint, or an adapter, is read from; empty where it holds none.

    >>> wanted_files(["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"])
    ['config.json', 'model.safetensors']
    """
    names = sorted(name for name in names if "/" not in name)
    stems = ("adapter_model", "adapter_model") if adapter else WEIGHTS
    beside = {ADAPTER_CONFIG} if adapter else {CONFIG, TOKENIZER}
    for stem, suffix in zip(stems, SUFFIXES, strict=True):
        weights = [name for name in names if name == stem + suffix]
        if not weights:
            index = f"{stem}{suffix}.index.json"
            weights = [name for name in names if name == index or re.fullmatch(rf"{stem}-\d+-of-\d+{suffix}", name)]
        if weights:
            return sorted({*weights, *(beside & set(names))})
    return []


def verify_cached(path: Path, sha256: str) -> None:
    """Compare a file with the digest by which the hub's cache names large files.

    Raises:
        UserError: it is another one.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) and blob.name != sha256:
        raise UserError(
            f"{path} is not the file that the hub has (its sha256 is {sha256}, not {blob.name}): delete {blob} and run "
            "the same command again"
        )
