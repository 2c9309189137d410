"""Sequences in memory to a matrix in memory: no FASTA, no folder, no table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.base.digest import FileDigests
from virnucpro.base.errors import UserError
from virnucpro.base.limits import let_waiting_threads_sleep, usable_cores
from virnucpro.base.paths import user_cache, user_path
from virnucpro.base.settings import EmbeddingSettings, LongProteins, default
from virnucpro.base.text import short
from virnucpro.chunking.size import SPECIAL_TOKENS
from virnucpro.models.reference import ModelRef
from virnucpro.options import in_arguments, speaking
from virnucpro.sequences.residues import clean_residues
from virnucpro.storage.request import WeightsRequest
from virnucpro.weights.manifest import read_manifest


class Embedded(NamedTuple):
    """``ids`` in the order in which they came, and a vector for each: float32 ``(n, D)``."""

    ids: list[str]
    matrix: NDArray[np.float32]


@speaking(in_arguments)
def embed_sequences(
    sequences: Mapping[str, str] | Iterable[tuple[str, str]],
    *,
    model: str | Path | ModelRef = default("model"),
    adapter: str | Path = default("adapter"),
    layer: int | str = "last",
    precision: str = default("precision"),
    long_proteins: LongProteins | Mapping[str, int | str] | str = LongProteins(),
    device: str | None = None,
    threads: int | None = None,
    weights_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    logger: logging.Logger | None = None,
) -> Embedded:
    """Embed proteins that are in memory: the mean of a layer over each one's residues.

    For many proteins, residues or several GPUs there is :func:`virnucpro.embed`, which goes on where it was stopped;
    the numbers are the same. Equal sequences are embedded once.

    Args:
        sequences: residues by id, or pairs of both; ids may be any text, also the same one twice in pairs.
        model, adapter, precision, long_proteins: as for :func:`virnucpro.embed`.
        layer: its number, or ``"last"``.
        device: ``"cuda:0"``, ``"cpu"``, ...; None takes the first GPU, or the CPU.
        threads, weights_folder, progress: as for :func:`virnucpro.embed`.

    Raises:
        UserError: a sequence that is empty or holds what is no residue, or what :func:`virnucpro.embed` refuses.

    >>> embed_sequences({"a": "MKVLAAGIV", "b": "MKV"}, model="esm2_demo", device="cpu").matrix.shape
    (2, 64)
    """
    let_waiting_threads_sleep()
    import torch

    from virnucpro.cuda.devices import job_devices
    from virnucpro.engine.embed import Protein, embed_proteins
    from virnucpro.weights.prepare import prepare_weights

    log = logger or logging.getLogger(__name__)
    settings = EmbeddingSettings((layer,), ("mean",), precision, LongProteins.of(long_proteins))
    pairs = [*(sequences.items() if isinstance(sequences, Mapping) else sequences)]
    ids = [name for name, _ in pairs]
    residues = [_residues(name, text) for name, text in pairs]
    ref = ModelRef.of(model, adapter)
    ref.resolve(settings.layers)
    folder = user_path(weights_folder or user_cache() / "weights", "weights_folder")
    digests = FileDigests()
    weights = WeightsRequest.of(ref, folder, digests)
    if weights.prepared() is None:
        prepare_weights(ref, weights.file, digests=weights.digests, log=log.info)
    manifest = read_manifest(weights.file)
    if not pairs:
        return Embedded([], np.zeros((0, manifest.embed_dim), np.float32))
    rows = {text: row for row, text in enumerate(dict.fromkeys(residues))}
    names = dict(zip(reversed(residues), reversed(ids), strict=True))
    proteins = [Protein(names[text], text) for text in rows]
    wanted = sum(len(text) + SPECIAL_TOKENS for text in rows)
    done = 0

    def heard(tokens: int) -> None:
        nonlocal done
        done = min(done + tokens, wanted)  # residues in two windows have two
        if progress is not None:
            progress(done, wanted)

    if threads is not None:
        torch.set_num_threads(min(threads, usable_cores()))
    name = device or job_devices(None)[0]
    found = embed_proteins(proteins, weights.file, manifest, settings, device=name, heard=heard, logger=log)
    (means,) = (values for key, values in found.tensors.items() if key.startswith("mean."))
    return Embedded(ids, means[[rows[text] for text in residues]])


def _residues(name: str, text: str) -> bytes:
    """One sequence's residues.

    Raises:
        UserError: there are none, or something else is among them.
    """
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(f"sequences must be texts by their ids, and {short(name)} is {short(text)}")
    cleaned = clean_residues(text.encode())
    if cleaned is None:
        raise UserError(f"the sequence of {short(name)} holds what is no residue: {short(text)}")
    if not cleaned[0].strip(b"-."):
        raise UserError(f"the sequence of {short(name)} is empty: give it one, or leave it out")
    return cleaned[0]
