"""Prepared weights: made once from a checkpoint, verified, and loaded memory-mapped by every job."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.models.esm2.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, verify_archive
from virnucpro.models.esm2.sizes import DEMO_MODEL, DEMO_WARNING, ESM2_MODELS, embedding_shapes
from virnucpro.models.esm2.synthetic import write_demo_checkpoint
from virnucpro.weights.convert import embedding_part, write_weights
from virnucpro.weights.download import Log
from virnucpro.weights.find import is_model_name, locate_checkpoint
from virnucpro.weights.manifest import WeightsManifest, read_manifest, write_manifest

__all__ = [
    "WeightsManifest",
    "load_checkpoint",
    "load_state_dict",
    "locate_checkpoint",
    "prepare_weights",
    "read_manifest",
    "verify_weights",
]

_AGAIN = "delete it and run the workflow's rule prepare_weights again"


def prepare_weights(model: str, output: Path, manifest: Path, *, log: Log) -> WeightsManifest:
    """Find or download a checkpoint, check all of it, and write its embedding part as safetensors.

    Neither the LM head nor the contact head is kept; every tensor keeps its stored dtype, and
    ``inv_freq`` its stored values. Memory stays bounded whatever the model's size.

    Args:
        model: a released model's name, ``esm2_demo``, or the path of a checkpoint.
        output: the safetensors file to write.
        manifest: the JSON file to write; it comes last, so where it is, the weights are whole.
        log: receives one line for each thing to tell.

    Raises:
        UserError: no checkpoint to be had, or one that is cut short, damaged, unsafe or not ESM-2.
    """
    output, manifest = Path(output), Path(manifest)
    if model == DEMO_MODEL:
        log(f"WARNING: {DEMO_WARNING}")
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{DEMO_MODEL}.pt"
            write_demo_checkpoint(source)
            return _prepare(model, source, output, manifest, log)
    return _prepare(model, locate_checkpoint(model, log), output, manifest, log)


def _prepare(model: str, source: Path, output: Path, manifest: Path, log: Log) -> WeightsManifest:
    checkpoint = read_checkpoint(source)
    if model in ESM2_MODELS and checkpoint.architecture != ESM2_MODELS[model]:
        raise UserError(f"{source} is not {model}: it has {checkpoint.architecture}; delete it or move it away")
    log(f"checking {source}")
    verify_archive(source)
    source_sha256 = _sha256(source)
    tensors = embedding_part(checkpoint)
    log(f"writing {output}")
    write_weights(output, tensors, source=source)
    content = WeightsManifest(
        model=model if is_model_name(model) else source.stem,
        sha256=_sha256(output),
        source_sha256=source_sha256,
        layers=checkpoint.architecture.layers,
        embed_dim=checkpoint.architecture.embed_dim,
        heads=checkpoint.architecture.heads,
        token_dropout=checkpoint.architecture.token_dropout,
        dtype=_dtype(checkpoint),
        parameters=checkpoint.architecture.parameters,
        demo=model == DEMO_MODEL,
        bytes=output.stat().st_size,
    )
    load_state_dict(output, manifest=content)  # by the library that the jobs read it with
    write_manifest(manifest, content)
    log(f"{content.model}: {content.parameters:,} parameters in {content.dtype}, sha256 {content.sha256}")
    return content


def load_state_dict(
    weights: Path, device: torch.device | str = "cpu", *, manifest: WeightsManifest | None = None
) -> dict[str, Tensor]:
    """Load prepared weights; on the CPU they are memory-mapped, so many processes share one copy.

    With ``manifest``, the file's size and every name and shape are compared with it first, which
    takes milliseconds (:func:`verify_weights` compares every byte).

    Returns:
        Tensors of the stored dtype on ``device``, named as in fair-esm's ``ESM2.state_dict()``.

    Raises:
        UserError: no such file, cut short, or not the weights of the manifest.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise UserError(f"no weights at {weights}: run the workflow's rule prepare_weights")
    if manifest is not None and weights.stat().st_size != manifest.bytes:
        raise UserError(
            f"weights {weights} have {weights.stat().st_size} bytes, their manifest says {manifest.bytes}: {_AGAIN}"
        )
    try:
        with safe_open(weights, framework="pt", device=str(device)) as file:
            if manifest is not None:
                _compare(weights, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, manifest)  # noqa: SIM118
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {weights} are cut short or damaged ({error}): {_AGAIN}") from None


def verify_weights(weights: Path, manifest: WeightsManifest) -> None:
    """Compare every byte of prepared weights with the manifest's sha256.

    Raises:
        UserError: they differ, or there is no such file.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise UserError(f"no weights at {weights}: run the workflow's rule prepare_weights")
    if _sha256(weights) != manifest.sha256:
        raise UserError(f"weights {weights} are not those of their manifest (sha256 differs): {_AGAIN}")


def _compare(weights: Path, found: dict[str, tuple[int, ...]], manifest: WeightsManifest) -> None:
    expected = embedding_shapes(manifest.architecture)
    for name in sorted(set(found) | set(expected)):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"weights {weights} are not those of their manifest ({name} has shape {found.get(name)}, "
                f"not {expected.get(name)}): {_AGAIN}"
            )


def _dtype(checkpoint: Checkpoint) -> str:
    """The dtype of the large matrices, which is that of nearly every number."""
    return str(checkpoint.state["layers.0.fc1.weight"].dtype).removeprefix("torch.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
