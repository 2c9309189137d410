"""Prepare weights: a checkpoint is found, checked from end to end, and its embedding part written for all jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from virnucpro.base.atomic import scratch_directory
from virnucpro.base.digest import file_sha256, file_stamp
from virnucpro.base.errors import UserError
from virnucpro.checkpoints.adapter import read_adapter
from virnucpro.checkpoints.files import CheckpointFiles, checkpoint_files
from virnucpro.checkpoints.hub import verify_cached
from virnucpro.checkpoints.torch_file import verify_archive
from virnucpro.models.families import family_named, read_checkpoint, write_demo_checkpoint
from virnucpro.models.precision import dtype_name
from virnucpro.models.reference import DEMO_WARNINGS, KNOWN, ModelRef
from virnucpro.weights.download import Log
from virnucpro.weights.file import UNKNOWN, kept_dtype, load_weights, write_weights
from virnucpro.weights.locate import is_demo, locate_adapter, locate_checkpoint, released_file
from virnucpro.weights.manifest import WeightsManifest, weights_name


def prepare_weights(
    model: str | ModelRef,
    output: Path,
    *,
    digests: tuple[str | None, str | None] = (None, None),
    log: Log,
) -> WeightsManifest:
    """Find or download a checkpoint, check all of it, and write its embedding part as safetensors.

    Neither the LM head nor the contact head is kept. Every tensor keeps its stored dtype (float64 becomes float32),
    and ``inv_freq`` its stored values; what an adapter changes is merged in float32. Memory stays bounded whatever the
    model's size.

    Args:
        model: what :meth:`virnucpro.models.reference.ModelRef.of` takes, or one with an adapter.
        output: the safetensors file to write; its metadata hold the manifest.
        digests: sha256 of checkpoint and adapter, where the caller has named the output by them.
        log: receives one line for each thing to tell.

    Raises:
        UserError: no checkpoint can be found, or one that is cut short, damaged, unsafe, of no known family, or
            changed meanwhile; or an adapter that does not fit it.
    """
    model, output = ModelRef.of(model), Path(output)
    with scratch_directory(output) as folder:
        if is_demo(model):
            log(f"WARNING: {DEMO_WARNINGS[model.name]}")
            base = checkpoint_files(write_demo_checkpoint(model.name, folder))
        else:
            base = checkpoint_files(locate_checkpoint(model, log))
        adapter = None if model.adapter is None else locate_adapter(model.adapter, log)
        files = [*base, *(adapter or ())]
        before = [file_stamp(file) for file in files]
        checkpoint = read_checkpoint(base)
        sizes = checkpoint.architecture
        if model.place is None and sizes != KNOWN[model.name]:
            raise UserError(f"{base.path} is not {model.name}: it has {sizes}; delete it or move it away")
        sha256 = {file: _verified_sha256(file, log) for file in files}
        released = released_file(model, base)
        if released is not None and released.sha256 != sha256[base.weights[0]]:
            raise UserError(
                f"{base.path} is not the released {model} (its sha256 is {sha256[base.weights[0]]}): delete it or move "
                "it away, or set the model to its path if that is what you mean"
            )
        for note in checkpoint.notes:
            log(f"NOTE: {note}")
        tensors = {name: checkpoint.state[name] for name in sizes.shapes()}
        changes = None
        if adapter is not None:
            changes = read_adapter(adapter, family_named(sizes.family).tensor_names(sizes), sizes.shapes())
            log(str(changes))
        largest = max(tensors, key=lambda name: tensors[name].numel())
        source_sha256 = base.sha256(sha256.__getitem__)
        adapter_sha256 = adapter.sha256(sha256.__getitem__) if adapter else ""
        manifest = WeightsManifest(
            model=weights_name(model, source_sha256, model.adapter_sha256(sha256.__getitem__)),
            sha256=UNKNOWN,
            source_sha256=source_sha256,
            adapter_sha256=adapter_sha256,
            source=" with adapter ".join(_described(one, sha256) for one in (base, adapter) if one is not None),
            architecture=sizes,
            dtype=dtype_name(kept_dtype(largest, tensors[largest], changes)),  # of nearly every number
            parameters=sizes.parameters,
            demo=is_demo(model),
        )
        log(f"writing {output}")
        manifest = write_weights(
            output, tensors, manifest, source=base.path, adapter=changes, tokenizer=checkpoint.tokenizer
        )
        is_expected = all(map(lambda one, other: one in (None, other), digests, (source_sha256, adapter_sha256)))
        if [file_stamp(file) for file in files] != before or not is_expected:
            output.unlink()
            raise UserError(f"checkpoint {model} changed while it was read: run the same command again")
        load_weights(output)  # as the jobs will read it
        log(f"{manifest.model}: {manifest.parameters:,} parameters in {manifest.dtype}, sha256 {manifest.sha256}")
        return manifest


def _verified_sha256(file: Path, log: Log) -> str:
    """The sha256 of a checkpoint's file, which was compared with the checksums that are in it or are its name."""
    log(f"checking {file}")
    verify_archive(file)
    sha256 = file_sha256(file)
    verify_cached(file, sha256)
    return sha256


def _described(files: CheckpointFiles, sha256: Mapping[Path, str]) -> str:
    """The place on the hub where it is known, and the files with their digests."""
    named = [f"{file.name} (sha256 {sha256[file]})" for file in files]
    return f"{files.hub}: {', '.join(named)}" if files.hub else ", ".join(named)
