"""Prepare weights: a checkpoint is found, checked from end to end, and its embedding part written for all jobs."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from virnucpro.base.atomic import scratch_directory
from virnucpro.base.digest import FileProof, file_sha256, file_stamp
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.esm2 import sizes as esm2
from virnucpro.models.esm2.sizes import CHECKPOINT_URL, ESM2_MODELS
from virnucpro.models.families import read_checkpoint, write_demo_checkpoint
from virnucpro.models.mosaic_bert import sizes as mosaic_bert
from virnucpro.models.mosaic_bert.sizes import HUB_ID, HUB_REVISION
from virnucpro.models.precision import dtype_name
from virnucpro.models.reference import DEMO_WARNINGS, KNOWN, ModelRef
from virnucpro.weights.connection import DownloadError
from virnucpro.weights.download import Expected, Log, download
from virnucpro.weights.file import UNKNOWN, load_weights, write_weights
from virnucpro.weights.manifest import WeightsManifest, weights_name

RELEASED: dict[str, FileProof] = {**esm2.RELEASED, **mosaic_bert.RELEASED}
"""Size and sha256 of the released files of models that are known by name, as far as they are known."""


def prepare_weights(
    model: str | ModelRef, output: Path, *, source_sha256: str | None = None, log: Log
) -> WeightsManifest:
    """Find or download a checkpoint, check all of it, and write its embedding part as safetensors.

    Neither the LM head nor the contact head is kept; every tensor keeps its stored dtype, and
    ``inv_freq`` its stored values. Memory stays bounded whatever the model's size.

    Args:
        model: a released model's name, a demo's, or the path of a checkpoint.
        output: the safetensors file to write; its metadata hold the manifest.
        source_sha256: of the checkpoint's file, where the caller has named the output by it.
        log: receives one line for each thing to tell.

    Raises:
        UserError: no checkpoint can be found, or one that is cut short, damaged, unsafe, of no known family, or
            changed meanwhile.
    """
    model = ModelRef.of(model)
    if _is_demo(model):
        log(f"WARNING: {DEMO_WARNINGS[model.name]}")
        with scratch_directory(Path(output)) as folder:
            return _prepare(model, write_demo_checkpoint(model.name, folder), Path(output), None, log)
    return _prepare(model, locate_checkpoint(model, log), Path(output), source_sha256, log)


def _prepare(model: ModelRef, source: Path, output: Path, expected_sha256: str | None, log: Log) -> WeightsManifest:
    before = file_stamp(source)
    checkpoint = read_checkpoint(source)
    sizes = checkpoint.architecture
    if model.path is None and sizes != KNOWN[model.name]:
        raise UserError(f"{source} is not {model}: it has {sizes}; delete it or move it away")
    log(f"checking {source}")
    verify_archive(source)
    source_sha256 = file_sha256(source)
    released = RELEASED.get(model.name) if model.path is None else None
    if released is not None and released.sha256 != source_sha256:
        raise UserError(
            f"{source} is not the released {model} (its sha256 is {source_sha256}): delete it or move it away, or set "
            "the model to its path if that is what you mean"
        )
    tensors = {name: checkpoint.state[name] for name in sizes.shapes()}
    manifest = WeightsManifest(
        model=weights_name(model, source_sha256),
        sha256=UNKNOWN,
        source_sha256=source_sha256,
        architecture=sizes,
        dtype=dtype_name(max(tensors.values(), key=torch.Tensor.numel).dtype),  # of nearly every number
        parameters=sizes.parameters,
        demo=_is_demo(model),
    )
    log(f"writing {output}")
    manifest = write_weights(output, tensors, manifest, source=source, tokenizer=checkpoint.tokenizer)
    if file_stamp(source) != before or expected_sha256 not in (None, source_sha256):
        output.unlink()
        raise UserError(f"checkpoint {source} changed while it was read: run the same command again")
    load_weights(output)  # as the jobs will read it
    log(f"{manifest.model}: {manifest.parameters:,} parameters in {manifest.dtype}, sha256 {manifest.sha256}")
    return manifest


def _is_demo(model: ModelRef) -> bool:
    return model.path is None and model.name in DEMO_WARNINGS


def cached_checkpoint(name: str) -> Path:
    """Where torch hub, and so fair-esm, keeps a downloaded checkpoint (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"


def locate_checkpoint(model: str | ModelRef, log: Log, *, url: str = CHECKPOINT_URL) -> Path:
    """Give the path of a model's checkpoint, downloading it once where it is not there yet.

    Args:
        model: one of the released names, a demo's (made on the spot), or the path of a
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
    if _is_demo(model):
        log(f"WARNING: {DEMO_WARNINGS[model.name]}")
        return write_demo_checkpoint(model.name, target.parent)
    if model.name not in ESM2_MODELS:
        raise UserError(
            f"{model} is not downloaded by itself: fetch pytorch_model.bin, config.json and tokenizer.json from "
            f"https://huggingface.co/{HUB_ID}/tree/{HUB_REVISION} into one folder, and set the model to the path of "
            "that pytorch_model.bin"
        )
    if target.is_file():
        log(f"{model}: found {target}")
        return target
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
