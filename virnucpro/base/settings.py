"""What is to be computed: layers, pooling, precision, and how long proteins are treated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virnucpro.base.errors import UserError

POOLINGS = ("mean", "per_residue")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "fp8")
LONG_POLICIES = ("window", "truncate", "full")
KERNELS = ("auto", "eager")
EMPTY_RECORDS = ("error", "skip")
DUPLICATE_IDS = ("error", "skip", "number", "header")
EMPTY_SAMPLES = ("error", "skip")
SUSPICIOUS = ("refuse", "accept")

LONGEST = 1022
"""Residues that fit into the 1024 tokens that ESM-2 was trained on, beside BOS and EOS."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of one embedding job.

    Attributes:
        layers: numbers, negative ones counted from the last as -1, or "last"
            (see :func:`resolve_layers`).
        pooling: "mean" over the residues, "per_residue", or both.
        precision: "auto" is fp16 where the GPU computes it fast, and fp32 on a CPU; "fp8" is for those who have
            read what it costs (docs/accuracy.md).
        long_policy: for proteins of more than ``longest`` residues: "window", "truncate" or "full".
        longest: residues of a window, or kept by "truncate".
        overlap: residues that neighbouring windows share at least.
        token_budget: tokens of a batch; None takes it from the device's free memory.
        kernels: "auto" takes fused kernels on a CUDA GPU in half precision, where they run; "eager" takes torch's
            own operators.

    Raises:
        UserError: a value is not one of those allowed.
    """

    layers: tuple[int | str, ...] = ("last",)
    pooling: tuple[str, ...] = ("mean",)
    precision: str = "auto"
    long_policy: str = "window"
    longest: int = LONGEST
    overlap: int = LONGEST // 2
    token_budget: int | None = None
    kernels: str = "auto"

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("long_proteins policy", self.long_policy, LONG_POLICIES)
        _one_of("kernels", self.kernels, KERNELS)
        for pooling in self.pooling:
            _one_of("pooling", pooling, POOLINGS)
        if not self.pooling or not self.layers:
            raise UserError("nothing to compute: name at least one pooling and one layer")
        longest_overlap = self.longest - 1 if self.long_policy == "window" else self.overlap
        if self.longest < 1 or not 0 <= self.overlap <= longest_overlap:
            raise UserError(
                f"long_proteins: longest ({self.longest}) must be at least 1 and "
                f"overlap ({self.overlap}) from 0 to longest - 1"
            )
        if self.token_budget is not None and self.token_budget < 1:
            raise UserError(f"token budget {self.token_budget}: give at least 1")


@dataclass(frozen=True)
class InputPolicies:
    """What is done about records and samples that can't simply be embedded.

    Attributes:
        empty_records: a record without residues (nothing, ``*`` or gaps alone): "error", or "skip" it and list it.
        duplicate_ids: an id that an earlier record of the sample has: "error"; "skip" the repeat and list it; "number"
            repeats as ``id_2``, ``id_3``; or take every record's whole "header" as its id.
        empty_samples: a file without records, or a sample of which none is left: "error", or "skip" it, which gives
            tables without rows.
        suspicious: what is surely no protein (nucleotides, alignments, messages): "refuse", or "accept" it as proteins.

    Raises:
        UserError: a value is not one of those allowed.
    """

    empty_records: str = "error"
    duplicate_ids: str = "error"
    empty_samples: str = "error"
    suspicious: str = "refuse"

    def __post_init__(self) -> None:
        _one_of("empty_records", self.empty_records, EMPTY_RECORDS)
        _one_of("duplicate_ids", self.duplicate_ids, DUPLICATE_IDS)
        _one_of("empty_samples", self.empty_samples, EMPTY_SAMPLES)
        _one_of("suspicious", self.suspicious, SUSPICIOUS)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name} {value!r} is not known: give one of {', '.join(allowed)}")


def resolve_layers(layers: Sequence[int | str] | int | str, count: int) -> tuple[int, ...]:
    """Layer numbers from 0 (the scaled embedding) to ``count``, sorted, each once.

    A negative number counts from the end as esm-extract does: -1 is the last layer.

    Raises:
        UserError: a layer that the model does not have, or no number and not "last".
    """
    given: Sequence[int | str] = (layers,) if isinstance(layers, (int, str)) else layers
    resolved = set()
    for layer in given:
        if isinstance(layer, bool) or not (isinstance(layer, int) or layer == "last"):
            raise UserError(f'layer {layer!r} is not known: give a number or "last"')
        number = count if isinstance(layer, str) else layer + count + 1 if layer < 0 else layer
        if not 0 <= number <= count:
            raise UserError(f"layer {layer} does not exist: the model has {count} layers, so give 0 to {count}")
        resolved.add(number)
    return tuple(sorted(resolved))
