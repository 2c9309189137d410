"""Rotary position embedding as ESM-2 was trained with it (Su et al. 2021, arXiv:2104.09864).

The frequencies are the checkpoint's own: training rounded them to float16, and computing them anew
turns a head's slower halves by up to 0.16 rad at position 1023. The tables are float32 whatever the
model's precision.

fair-esm's ESM-2 parameters, arranged for the packed forward.

One ESM-2 transformer layer on packed tokens, as two steps with the attention between them.

``x`` is the residual stream ``(T, D)``; what enters a matrix product has the weights' dtype.

What runs around the attention of a layer.

The steps of a layer by torch's own operators: every device, every dtype.

ESM-2's forward over packed sequences: fair-esm's parameters and numbers, no padding, no LM head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.models.esm2.sizes import Architecture


def rotary_tables(inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles.

    Args:
        inv_freq: ``(head_dim / 2,)`` from the checkpoint (``layers.N.self_attn.rot_emb.inv_freq``).
        positions: ``(T,)`` integers; BOS has position 0.

    Returns:
        Two float32 tensors ``(T, 1, head_dim / 2)``. fair-esm repeats them over both halves of a head.
    """
    angles = torch.outer(positions.float(), inv_freq.float())
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(x[i], x[i + head_dim / 2])`` by their angles, in float32.

    Args:
        x: ``(T, heads, head_dim)`` in any floating dtype.
        cos, sin: from :func:`rotary_tables`.

    Returns:
        ``(T, heads, head_dim)``, float32.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_in_place(x: Tensor, turn: Tensor) -> None:
    """The same as a product of complex numbers, written back to ``x`` in its own dtype.

    Without a compiler this is several times faster than :func:`rotate` on a CPU: four passes in place
    of seven, and none over rows as short as half a head.

    Args:
        x: ``(T, heads, head_dim)``, overwritten.
        turn: complex64 ``(T, 1, head_dim / 2)``: cosine + i sine, times a scale if there is one.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first.float(), second.float()) * turn
    first.copy_(turned.real)
    second.copy_(turned.imag)


class LayerParameters(NamedTuple):
    """One transformer layer, D = embed_dim. Norms are float32, the rest has the model's dtype.

    ``qkv_weight`` ``(3 D, D)`` and ``qkv_bias`` ``(3 D,)`` hold q, k and v in this order.
    """

    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    final_norm_weight: Tensor
    final_norm_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class ModelParameters(NamedTuple):
    """The embedding part of an ESM-2: no LM head, no contact head.

    ``inv_freq`` has one float32 ``(head_dim / 2,)`` tensor a layer, as stored in the checkpoint.
    """

    embed_tokens: Tensor
    layers: tuple[LayerParameters, ...]
    inv_freq: tuple[Tensor, ...]
    after_norm_weight: Tensor
    after_norm_bias: Tensor


def arrange_parameters(
    state: Mapping[str, Tensor], architecture: Architecture, *, device: torch.device, dtype: torch.dtype
) -> ModelParameters:
    """Copy a state dict tensor by tensor to ``device`` and ``dtype``, with q, k and v fused.

    One layer at a time is read, so that a memory-mapped state dict never has to fit into RAM.

    Args:
        state: named as in fair-esm's ``ESM2.state_dict()``; other tensors in it are ignored.

    Raises:
        UserError: a tensor is missing or has another shape than the architecture's.
    """
    dim = architecture.embed_dim

    def get(name: str, *shape: int) -> Tensor:
        try:
            tensor = state[name]
        except KeyError:
            raise UserError(f"the weights lack the tensor {name}: prepare them again from the checkpoint") from None
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"the weights' tensor {name} has shape {tuple(tensor.shape)} and not {shape}: "
                "these are not the weights of the model that their manifest names"
            )
        return tensor

    def half(name: str, *shape: int) -> Tensor:
        return get(name, *shape).to(device=device, dtype=dtype)

    def wide(name: str, *shape: int) -> Tensor:
        return get(name, *shape).to(device=device, dtype=torch.float32)

    layers = []
    inv_freq = []
    for number in range(architecture.layers):
        layers.append(_layer(f"layers.{number}.", dim, half, wide, device, dtype))
        inv_freq.append(wide(f"layers.{number}.self_attn.rot_emb.inv_freq", architecture.head_dim // 2))
    return ModelParameters(
        embed_tokens=half("embed_tokens.weight", 33, dim),
        layers=tuple(layers),
        inv_freq=tuple(inv_freq),
        after_norm_weight=wide("emb_layer_norm_after.weight", dim),
        after_norm_bias=wide("emb_layer_norm_after.bias", dim),
    )


Getter = Callable[..., Tensor]


def _layer(
    prefix: str, dim: int, half: Getter, wide: Getter, device: torch.device, dtype: torch.dtype
) -> LayerParameters:
    qkv_weight = torch.empty(3 * dim, dim, device=device, dtype=dtype)
    qkv_bias = torch.empty(3 * dim, device=device, dtype=dtype)
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = slice(part * dim, (part + 1) * dim)
        qkv_weight[rows] = half(f"{prefix}self_attn.{name}.weight", dim, dim)
        qkv_bias[rows] = half(f"{prefix}self_attn.{name}.bias", dim)
    return LayerParameters(
        attention_norm_weight=wide(f"{prefix}self_attn_layer_norm.weight", dim),
        attention_norm_bias=wide(f"{prefix}self_attn_layer_norm.bias", dim),
        qkv_weight=qkv_weight,
        qkv_bias=qkv_bias,
        out_weight=half(f"{prefix}self_attn.out_proj.weight", dim, dim),
        out_bias=half(f"{prefix}self_attn.out_proj.bias", dim),
        final_norm_weight=wide(f"{prefix}final_layer_norm.weight", dim),
        final_norm_bias=wide(f"{prefix}final_layer_norm.bias", dim),
        fc1_weight=half(f"{prefix}fc1.weight", 4 * dim, dim),
        fc1_bias=half(f"{prefix}fc1.bias", 4 * dim),
        fc2_weight=half(f"{prefix}fc2.weight", dim, 4 * dim),
        fc2_bias=half(f"{prefix}fc2.bias", dim),
    )


LAYER_NORM_EPS = 1e-5


def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the channels, computed and returned in float32."""
    return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, LAYER_NORM_EPS)


def project_qkv(
    x: Tensor, p: LayerParameters, cos: Tensor, sin: Tensor, heads: int, q_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(T, heads, head_dim)``: bias, then scale (q alone), then rotary (q and k).

    Args:
        q_scale: ``head_dim ** -0.5``, or 1.0 when the attention kernel scales.
    """
    tokens, dim = x.shape
    y = normalise(x, p.attention_norm_weight, p.attention_norm_bias).to(p.qkv_weight.dtype)
    q, k, v = F.linear(y, p.qkv_weight, p.qkv_bias).view(tokens, 3, heads, dim // heads).unbind(1)
    turn = torch.complex(cos, sin)
    rotate_in_place(q, turn * q_scale)
    rotate_in_place(k, turn)
    return q, k, v


def finish_layer(x: Tensor, attended: Tensor, p: LayerParameters) -> Tensor:
    """Output projection and feed-forward, each added to the residual stream.

    Args:
        attended: ``(T, heads, head_dim)`` from the attention.

    Returns:
        The new residual stream, in ``x``'s dtype; ``x`` itself is left as it was.
    """
    x = x + F.linear(attended.reshape(x.shape), p.out_weight, p.out_bias)
    y = normalise(x, p.final_norm_weight, p.final_norm_bias).to(p.fc1_weight.dtype)
    return x + F.linear(feed_forward_hidden(y, p), p.fc2_weight, p.fc2_bias)


def feed_forward_hidden(y: Tensor, p: LayerParameters) -> Tensor:
    """The feed-forward's hidden layer ``(T, 4 D)`` of normalised ``y``; GELU with erf, as fair-esm's."""
    return F.gelu(F.linear(y, p.fc1_weight, p.fc1_bias))


def embed_tokens(tokens: Tensor, weight: Tensor, sequence: Tensor, sequences: int, token_dropout: bool) -> Tensor:
    """The scaled token embedding, which is ESM-2's layer 0.

    With token dropout, rows of mask tokens are zeroed and the rest is scaled by
    ``(1 - 0.15 * 0.8) / (1 - masked share)``, the share counted over a whole sequence with BOS and
    EOS (fair-esm's ``ESM2.forward``); without a mask token that is 0.88 exactly.

    Returns:
        float32 ``(T, D)``.
    """
    x = F.embedding(tokens, weight).float()
    if not token_dropout:
        return x
    masked = tokens == MASK
    counts = torch.zeros(2, sequences, dtype=torch.float32, device=tokens.device)
    counts[0].index_add_(0, sequence, masked.float())
    counts[1].index_add_(0, sequence, torch.ones_like(masked, dtype=torch.float32))
    kept = 1 - counts[0] / counts[1]
    x = x.masked_fill(masked.unsqueeze(1), 0.0)
    return x * (1 - 0.15 * 0.8) / kept[sequence].unsqueeze(1)


MASK = 32
"""Index of ``<mask>`` in ESM-2's vocabulary."""


class Stream(NamedTuple):
    """The residual stream between two steps.

    Attributes:
        x: ``(T, D)``. What it holds is the business of the steps that made it; :meth:`LayerSteps.representation`
            reads it.
        addend: ``(T, D)``, a product that is still to be added to ``x``, or None.
    """

    x: Tensor
    addend: Tensor | None = None


class LayerSteps(Protocol):
    """The steps of each layer before and after its attention.

    Attributes:
        name: for logs and for the record in the chunk file ("eager", "fused", "fused fp8").
    """

    name: str

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        """Norm and projections of layer ``number`` (from 0).

        Args:
            cos, sin: from :func:`virnucpro.models.esm2.model.rotary_tables`.

        Returns:
            The stream, which may be the given one changed in place, and q, k and v ``(T, heads, head_dim)``.
        """
        ...

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        """The stream after layer ``number``, given its attention's output ``(T, heads, head_dim)``.

        The given stream may be changed in place.
        """
        ...

    def representation(self, stream: Stream, layers: int) -> Tensor:
        """The raw representation after ``layers`` layers, ``(T, D)``; later steps leave it as it is."""
        ...

    def final(self, stream: Stream) -> Tensor:
        """The last layer's representation, through ``emb_layer_norm_after``: float32 ``(T, D)``."""
        ...


class EagerSteps:
    """The steps as :mod:`virnucpro.models.esm2.model` states them."""

    name = "eager"

    def __init__(self, parameters: ModelParameters, heads: int, q_scale: float) -> None:
        """Args: ``q_scale`` is ``head_dim ** -0.5``, or 1.0 when the attention kernel scales."""
        self.parameters = parameters
        self.heads = heads
        self.q_scale = q_scale

    def project(self, stream: Stream, number: int, cos: Tensor, sin: Tensor) -> tuple[Stream, Tensor, Tensor, Tensor]:
        return (stream, *project_qkv(stream.x, self.parameters.layers[number], cos, sin, self.heads, self.q_scale))

    def finish(self, stream: Stream, attended: Tensor, number: int) -> Stream:
        return Stream(finish_layer(stream.x, attended, self.parameters.layers[number]))

    def representation(self, stream: Stream, layers: int) -> Tensor:
        return stream.x

    def final(self, stream: Stream) -> Tensor:
        return normalise(stream.x, self.parameters.after_norm_weight, self.parameters.after_norm_bias)


class PackedESM2:
    """The embedding part of an ESM-2 with an attention chosen for its device.

    The residual stream and the norms are float32 in every precision; the matrix products, and the
    attention's inputs and outputs, have the parameters' dtype. On weights with outlier channels a
    stream in half precision loses more than everything else together: pooled errors against
    float64, 24 layers of 480 channels, were 8e-4 in float16 with a float32 stream, 4e-3 with a
    float16 stream, and 3e-3 in fair-esm's own ``.half()`` (bfloat16: 8e-3, 1.8e-2, 1.9e-2).

    Attributes:
        q_scale: what q is multiplied with before the rotary: ``head_dim ** -0.5``, or 1.0 when the attention scales.
        steps: what runs around the attention; :mod:`virnucpro.engine.load` has faster ones.
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
