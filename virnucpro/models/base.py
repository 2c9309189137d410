"""What the rest of the package knows of an architecture: how to read, build and call its models.

A new architecture is a folder beside ``esm2``. Its :class:`Family` is named in :mod:`virnucpro.models.families`, and
its sizes, which need no torch, in :mod:`virnucpro.models.reference`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.checkpoints.tensors import StoredTensors


class Sizes(Protocol):
    """What is known of a model before its weights are read.

    Attributes:
        family: name of the :class:`Family` that it belongs to.
        parameters: count of the numbers that are loaded.
    """

    @property
    def family(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def embed_dim(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def parameters(self) -> int: ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors of prepared weights, by name."""
        ...


S = TypeVar("S", bound=Sizes)


@dataclass(frozen=True)
class ModelFacts:
    """A loaded model, for logs, budgets and provenance.

    Attributes:
        family: the architecture's name, such as "esm2".
        dtype: what the matrix products are computed in.
        attention: the attention by its own name, such as "triton_flash" or "sdpa".
        implementation: "flash_attention_2" or "standard_attention".
        layers_run: "eager", or a faster form's name, such as "fused" or "fused int8".
    """

    family: str
    layers: int
    embed_dim: int
    device: torch.device
    dtype: torch.dtype
    attention: str
    implementation: str
    layers_run: str


class Model(Protocol):
    """A model on its device; nothing changes it after it is built."""

    @property
    def facts(self) -> ModelFacts: ...

    def __call__(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """Representations of the layers asked for.

        Args:
            tokens: ``(T,)`` integer token ids of all sequences, end to end, each with its special tokens.
            layers: numbers from 0 (the embedding) to ``facts.layers``.

        Returns:
            For each layer float32 ``(T, D)``.
        """
        ...


class Tokenizer(Protocol):
    """Letters to token ids.

    Attributes:
        begin, end: ids of the special tokens that every piece of a sequence gets before and after its own, and whose
            representations are not kept.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def encode(self, sequences: Sequence[bytes], names: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each sequence without ``begin`` and ``end``: integers ``(tokens,)``, of one dtype for all.

        Raises:
            UserError: a character has no token; one of ``names`` says in which sequence.
        """
        ...


@dataclass(frozen=True)
class Checkpoint(Generic[S]):
    """A checkpoint as read and checked; its tensors may be mapped from the file and not yet read.

    Attributes:
        state: the tensors that representations need, by the family's own names, of the stored dtypes.
        tokenizer: what prepared weights keep for :meth:`Family.tokenizer`; empty where the family itself knows the
            tokens.
        heads: those that representations do without, as far as they are there whole and anybody wants them.
        notes: what has to be known of the weights, a sentence each, for the log.
    """

    architecture: S
    state: Mapping[str, Tensor]
    tokenizer: str = ""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Family(Protocol[S]):
    """An architecture: everything about it that the rest of the package calls.

    Attributes:
        name: as in manifests and provenance.
        models: sizes of the published models, by the names that users give.
        demo: the name of its small model with random weights.
    """

    name: str
    models: Mapping[str, S]
    demo: str

    def write_demo(self, folder: Path) -> Path:
        """Write the demo model's checkpoint, always the same, into a folder; gives its path."""
        ...

    def tokenizer(self, text: str = "") -> Tokenizer:
        """The tokenizer of a model whose prepared weights keep ``text`` (see :attr:`Checkpoint.tokenizer`)."""
        ...

    def read(self, stored: StoredTensors) -> Checkpoint[S] | None:
        """A checkpoint of this family, or None where the tensors are in no layout of its.

        Raises:
            UserError: they are in one of its layouts, but incomplete, damaged, or of another model of its kind.
        """
        ...

    def tensor_names(self, sizes: S) -> Mapping[str, str]:
        """Names of the tensors of prepared weights, by every name that checkpoints and adapters have for them."""
        ...

    def slopes(self, sizes: S) -> Tensor | None:
        """ALiBi's slope of each head, float32 ``(heads,)`` on the CPU; None where attention has no such term."""
        ...

    def build(
        self,
        state: Mapping[str, Tensor],
        sizes: S,
        attention: Callable[[], PackedAttention],
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: str,
        logger: logging.Logger,
    ) -> Model:
        """A model on ``device``, in the fastest form that runs there and agrees with the readable one.

        Args:
            state: tensors by the names of the family's prepared weights; they are read one at a time.
            attention: gives the attention, which takes and gives :func:`virnucpro.models.precision.parameter_dtype`
                of ``dtype``; it is still being chosen while the parameters go to the device, so it is asked for last.
            dtype: of the matrix products.
            kernels: "auto", or "eager" for the readable form.

        Raises:
            UserError: tensors are missing or have other shapes, or ``dtype`` does not work here.
            torch.OutOfMemoryError: the parameters do not fit.
        """
        ...
