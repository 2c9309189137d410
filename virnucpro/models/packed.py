"""ESM-2's forward over packed sequences: fair-esm's parameters and numbers, no padding, no LM head."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from virnucpro.models.attention import PackedAttention
from virnucpro.models.layer import embed_tokens
from virnucpro.models.parameters import ModelParameters, arrange_parameters
from virnucpro.models.rotary import rotary_tables
from virnucpro.models.segments import Segments
from virnucpro.models.steps.base import LayerSteps, Stream
from virnucpro.models.steps.eager import EagerSteps
from virnucpro.weights.architectures import Architecture


class PackedESM2:
    """The embedding part of an ESM-2 with an attention chosen for its device.

    The residual stream and the norms are float32 in every precision; the matrix products, and the
    attention's inputs and outputs, have the parameters' dtype. On weights with outlier channels a
    stream in half precision loses more than everything else together: pooled errors against
    float64, 24 layers of 480 channels, were 8e-4 in float16 with a float32 stream, 4e-3 with a
    float16 stream, and 3e-3 in fair-esm's own ``.half()`` (bfloat16: 8e-3, 1.8e-2, 1.9e-2).

    Attributes:
        q_scale: what q is multiplied with before the rotary: ``head_dim ** -0.5``, or 1.0 when the attention scales.
        steps: what runs around the attention; :mod:`virnucpro.models.steps.choose` has faster ones.
    """

    def __init__(self, parameters: ModelParameters, architecture: Architecture, attention: PackedAttention) -> None:
        self.parameters = parameters
        self.architecture = architecture
        self.attention = attention
        self.q_scale = 1.0 if attention.scales else architecture.head_dim**-0.5
        self.steps: LayerSteps = EagerSteps(parameters, architecture.heads, self.q_scale)
        self._rotary_sources = _first_equal(parameters.inv_freq)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        architecture: Architecture,
        attention: PackedAttention,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> PackedESM2:
        """Build from tensors named as in fair-esm's ``ESM2.state_dict()`` (see :func:`arrange_parameters`)."""
        parameters = arrange_parameters(state, architecture, device=device, dtype=dtype)
        return cls(parameters, architecture, attention)

    @property
    def device(self) -> torch.device:
        return self.parameters.embed_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters.embed_tokens.dtype

    def __call__(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """Representations of the layers asked for.

        Args:
            tokens: ``(T,)`` integer token ids, every sequence with its BOS and EOS.
            layers: numbers from 0 (the scaled embedding) to the model's count of layers; layers
                above the highest one are not computed.

        Returns:
            For each layer float32 ``(T, D)``. The last layer alone has gone through ``emb_layer_norm_after``.
        """
        last = self.architecture.layers
        unknown = [layer for layer in layers if not 0 <= layer <= last]
        if unknown:
            raise ValueError(f"layers {unknown} asked of a model with layers 0 to {last}")
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]  # kernels start on the current device
            return self._run(tokens, segments, layers)

    def _run(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        p, last = self.parameters, self.architecture.layers
        x = embed_tokens(
            tokens,
            p.embed_tokens,
            segments.sequence,
            len(segments.lengths),
            self.architecture.token_dropout,
        )
        found = {0: x.clone()} if 0 in layers else {}  # the steps may change the stream in place
        sources = self._rotary_sources[: max(layers, default=0)]
        tables = {source: rotary_tables(p.inv_freq[source], segments.positions) for source in set(sources)}
        stream = Stream(x)
        for number, source in enumerate(sources):
            stream, q, k, v = self.steps.project(stream, number, *tables[source])
            stream = self.steps.finish(stream, self.attention(q, k, v, segments), number)
            if number + 1 in layers and number + 1 < last:
                found[number + 1] = self.steps.representation(stream, number + 1)
        if last in layers:
            found[last] = self.steps.final(stream)
        return found


def _first_equal(tensors: tuple[Tensor, ...]) -> list[int]:
    """For each tensor the number of the first equal one; in the released models all layers share one."""
    first: list[int] = []
    for number, tensor in enumerate(tensors):
        first.append(next((other for other in sorted(set(first)) if torch.equal(tensors[other], tensor)), number))
    return first
