"""Files of repositories of huggingface.co: from the hub's cache, or downloaded to it by the hub's own library.

It is ``huggingface_hub`` which knows tokens, mirrors and the offline mode (``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, ...); what is cached is read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from virnucpro.base.errors import UserError
from virnucpro.base.limits import is_out_of_memory
from virnucpro.base.space import check_space
from virnucpro.base.text import short, size
from virnucpro.checkpoints.files import CheckpointFiles, adapter_files
from virnucpro.checkpoints.hub import HubId, cached_files, hub_cache, wanted_files

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
            raise UserError(f"{hub} on the hub holds no {kind} of PyTorch or safetensors: {_some(sizes)} is there")
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


def _some(names: Iterable[Any]) -> str:
    found = sorted(map(str, names))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return short(found[0]) + more if found else "nothing"
