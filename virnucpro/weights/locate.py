"""Find a model's checkpoint: where the user says, in the caches of torch and of huggingface.co, or by a download.

Files of huggingface.co are downloaded by its own library. It is ``huggingface_hub`` which knows tokens, mirrors and the
offline mode (``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ...); what is cached is read without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from virnucpro.base.digest import FileProof
from virnucpro.base.errors import UserError
from virnucpro.base.limits import check_space, is_out_of_memory
from virnucpro.base.text import short, size, some
from virnucpro.checkpoints.files import CheckpointFiles, adapter_files, checkpoint_files
from virnucpro.checkpoints.hub import HubId, cached_files, hub_cache, wanted_files
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2 import sizes as esm2
from virnucpro.models.esm2.sizes import CHECKPOINT_URL, ESM2_MODELS, HUB_OWNER
from virnucpro.models.families import read_checkpoint, write_demo_checkpoint
from virnucpro.models.mosaic_bert.sizes import HUB_ID, HUB_REVISION
from virnucpro.models.reference import DEMO_WARNINGS, RELEASED, ModelRef, Place
from virnucpro.weights.connection import DownloadError
from virnucpro.weights.download import Expected, Log, download


def is_demo(model: ModelRef) -> bool:
    """Whether the model is one of ours with random weights."""
    return model.place is None and model.name in DEMO_WARNINGS


def released_file(model: ModelRef, found: CheckpointFiles) -> FileProof | None:
    """What the file of a released model has to be; None where that is not known, or for HuggingFace's form of ESM-2."""
    if model.place is not None or (found.hub and model.name in ESM2_MODELS):
        return None
    return RELEASED.get(model.name)


def cached_checkpoint(name: str) -> Path:
    """Where torch hub, and so fair-esm, keeps a downloaded checkpoint (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"


def locate_checkpoint(model: str | ModelRef, log: Log, *, url: str = CHECKPOINT_URL) -> Path:
    """Give the path of a model's checkpoint, a file or a folder, downloading it once where it is not there yet.

    A released ESM-2 is taken from torch hub's cache, from that of huggingface.co, or downloaded as fair-esm does; what
    is on the hub alone is downloaded by the hub's own library.

    Args:
        model: what :meth:`virnucpro.models.reference.ModelRef.of` takes; a demo's checkpoint is made on the spot.
        log: receives one line for each thing to tell.
        url: where to download from, with ``{name}`` for the model's name.

    Raises:
        UserError: an unknown name, no such file, or no way to download it; the message names the
            file to fetch and where to put it.
    """
    model = ModelRef.of(model)
    if model.path is not None:
        return model.path
    if isinstance(model.place, HubId):
        return hub_files(model.place, checkpoint_files, log).path
    target = cached_checkpoint(model.name)
    if is_demo(model):
        log(f"WARNING: {DEMO_WARNINGS[model.name]}")
        return write_demo_checkpoint(model.name, target.parent)
    if model.name not in ESM2_MODELS:
        return hub_files(HubId(HUB_ID, HUB_REVISION), checkpoint_files, log).path
    if target.is_file():
        log(f"{model}: found {target}")
        return target
    cached = cached_files(HubId(f"{HUB_OWNER}/{model.name}"), checkpoint_files)
    if cached is not None:
        log(f"{model}: found {cached.path}")
        return cached.path
    source = url.format(name=model.name)
    log(f"{model}: downloading {source} to {target}")
    try:
        download(source, target, log, _expected(model))
    except DownloadError as error:
        raise UserError(
            f"cannot download {model}: {error}. Fetch {source} on a machine with network and put it at {target}, "
            "or set `model:` to the path of a copy, or TORCH_HOME to a folder of yours; a download that broke off goes "
            "on at the next run"
        ) from None
    return target


def locate_adapter(place: Place, log: Log) -> CheckpointFiles:
    """An adapter's files, downloaded once where they are on the hub and not in its cache.

    Raises:
        UserError: there is none, or no way to download it.
    """
    return hub_files(place, adapter_files, log) if isinstance(place, HubId) else adapter_files(place)


def _expected(model: ModelRef) -> Expected:
    """What a released ESM-2's file has to be, for its download."""
    sizes, proof = ESM2_MODELS[model.name], RELEASED.get(model.name)

    def check(path: Path) -> None:
        found = read_checkpoint(path).architecture
        if found != sizes:
            raise UserError(f"{path} has {found}, and {model} {sizes}")
        if proof is None:
            verify_archive(path)

    numbers = sum(math.prod(shape) for shape in esm2.state_shapes(sizes).values())
    return Expected(check, proof, 4 * numbers + _BESIDE if proof is None else proof.size)


_BESIDE = 1 << 24
"""Bytes that a checkpoint may have beside its numbers."""

NO_LIBRARY = (
    "it is downloaded with the package huggingface_hub, which is not installed: pip install 'virnucpro[hub]', or "
    "give the path of a folder with the repository's files"
)


def hub_files(hub: HubId, find: Callable[[Path], CheckpointFiles], log: Callable[[str], None]) -> CheckpointFiles:
    """A repository's files from the hub's cache, or else downloaded to it by the library ``huggingface_hub``.

    Args:
        find: as for :func:`cached_files`.
        log: receives one line for each thing to tell.

    Raises:
        UserError: not cached, and the library is missing, the hub can't be reached or refuses it, or the repository
            holds no such files.
    """
    found = cached_files(hub, find)
    if found is None:
        found = find(_download(hub, find is adapter_files, log))
    else:
        log(f"{hub}: found {found.weights[0].parent}")
    return found


def _download(hub: HubId, adapter: bool, log: Callable[[str], None]) -> Path:
    """Download what a checkpoint, or an adapter, is read from; gives the snapshot's folder."""
    try:
        import huggingface_hub as library
    except ImportError:
        raise UserError(f"{hub} is not in the hub's cache ({hub_cache()}), and {NO_LIBRARY}") from None
    try:
        info = library.HfApi().model_info(hub.repository, revision=hub.revision, files_metadata=True)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
        wanted = wanted_files(sizes, adapter=adapter)
        if not wanted:
            kind = "adapter" if adapter else "checkpoint"
            there = some(sorted(sizes), "file") if sizes else "nothing"
            raise UserError(f"{hub} on the hub holds no {kind} of PyTorch or safetensors: {there} is there")
        total = sum(sizes[name] for name in wanted)
        hub.folder.mkdir(parents=True, exist_ok=True)
        check_space(hub.folder, total, f"downloading {hub}")
        log(f"{hub}: downloading {', '.join(wanted)} ({size(total)}) at commit {info.sha} to {hub.folder}")
        paths = [
            Path(library.hf_hub_download(hub.repository, name, revision=hub.revision, cache_dir=str(hub_cache())))
            for name in wanted
        ]
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # The library's errors have changed places from version to version, and httpx's or requests' come through.
        if is_out_of_memory(error):
            raise
        raise _refusal(hub, error) from None
    return paths[0].parent


_REASONS = {
    "GatedRepoError": "it is gated: accept its conditions on its page there and set HF_TOKEN",
    "RepositoryNotFoundError": "there is neither such a path here nor such a repository on the hub (a private one "
    "needs HF_TOKEN)",
    "RevisionNotFoundError": "the repository has no such revision",
    "OfflineModeIsEnabled": "it is not in the cache, and HF_HUB_OFFLINE forbids a download",
    "LocalEntryNotFoundError": "it is not in the cache, and the hub cannot be reached",
    "HFValidationError": "that is no repository's name",
    "PermissionError": "the cache cannot be written to: set HF_HOME to a folder of yours",
}


def _refusal(hub: HubId, error: Exception) -> UserError:
    names = [kind.__name__ for kind in type(error).__mro__]
    said = short(str(error).strip().partition("\n")[0])
    known = next((_REASONS[name] for name in names if name in _REASONS), None)
    reason = known or f"the hub cannot be reached or refuses it ({names[0]}: {said})"
    page = f"https://huggingface.co/{hub.repository}/tree/{hub.revision}"
    return UserError(
        f"cannot get {hub} from the hub, and no path here is called so: {reason}. Or fetch the files of {page} on a "
        "machine with network, and give the path of their folder"
    )
