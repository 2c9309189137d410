"""Find a model's checkpoint: a path, torch hub's cache (shared with fair-esm), or a download into it."""

from __future__ import annotations

from pathlib import Path

import torch

from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import CHECKPOINT_URL, DEMO_MODEL, DEMO_WARNING
from virnucpro.models.esm2.synthetic import write_demo_checkpoint
from virnucpro.models.reference import ModelRef
from virnucpro.weights.download import DownloadError, Log, download


def cached_checkpoint(name: str) -> Path:
    """Where torch hub, and so fair-esm, keeps a downloaded checkpoint (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"


def locate_checkpoint(model: str | ModelRef, log: Log, *, url: str = CHECKPOINT_URL) -> Path:
    """Give the path of a model's checkpoint, downloading it once where it is not there yet.

    Args:
        model: one of the released names, ``esm2_demo`` (made on the spot), or the path of a
            checkpoint in fair-esm's layout.
        log: receives one line for each thing to tell.
        url: where to download from, with ``{name}`` for the model's name.

    Raises:
        UserError: an unknown name, no such file, or no way to download it; the message names the
            file to fetch and where to put it.
    """
    model = ModelRef.of(model)
    if model.path is not None:
        return model.path
    target = cached_checkpoint(model.name)
    if model.name == DEMO_MODEL:
        log(f"WARNING: {DEMO_WARNING}")
        write_demo_checkpoint(target)
        return target
    if target.is_file():
        log(f"{model}: found {target}")
        return target
    source = url.format(name=model.name)
    log(f"{model}: downloading {source} to {target}")
    try:
        download(source, target, log)
    except DownloadError as error:
        raise UserError(
            f"cannot download {model}: {error}. Fetch {source} on a machine with network and put it at {target}, "
            "or set `model:` to the path of a copy, or TORCH_HOME to a folder of yours; a download that broke off goes "
            "on at the next run"
        ) from None
    return target
