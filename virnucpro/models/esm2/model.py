"""ESM-2's forward over packed sequences, top to bottom: parameters, embedding, rotary, one layer, the final norm.

A batch is T tokens of all its sequences end to end, without padding. D is the width, H the count of heads of d = D / H
channels. ``x`` is the residual stream ``(T, D)``. It and the norms are float32 in every precision; the matrix
products, and what enters and leaves attention, have the weights' dtype. On weights with outlier channels a stream in
half precision loses more than everything else together: pooled errors against float64, 24 layers of 480 channels,
were 8e-4 in float16 with a float32 stream, 4e-3 with a float16 stream, and 3e-3 in fair-esm's own ``.half()``
(bfloat16: 8e-3, 1.8e-2, 1.9e-2).

Faster forms of the same model, which are compared with this one before they are used:
:mod:`virnucpro.models.esm2.fused` and :mod:`virnucpro.models.esm2.int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.models.base import ModelFacts
from virnucpro.models.esm2.alphabet import MASK
from virnucpro.models.esm2.sizes import Architecture

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Linear:
    """A matrix product with a bias, both in the weight's dtype."""

    weight: Tensor  # (outputs, inputs)
    bias: Tensor  # (outputs,)

    def __call__(self, y: Tensor) -> Tensor:
        """``(T, inputs)`` in any dtype to ``(T, outputs)`` in the weight's."""
        return F.linear(y.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the channels, computed and returned in float32."""

    weight: Tensor  # (D,), float32
    bias: Tensor  # (D,), float32

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (x.shape[-1],), self.weight, self.bias, LAYER_NORM_EPS)


@dataclass(frozen=True)
class Layer:
    """The parameters of one transformer layer."""

    attention_norm: Norm
    qkv: Linear  # (3 D, D): queries, keys and values in this order
    out: Linear  # (D, D)
    final_norm: Norm
    fc1: Linear  # (4 D, D)
    fc2: Linear  # (D, 4 D)
    inv_freq: Tensor  # (d / 2,), float32; the same tensor in layers whose frequencies are equal


@dataclass(frozen=True)
class Parameters:
    """The embedding part of an ESM-2: no language-model head, no contact head."""

    embedding: Tensor  # (33, D)
    layers: tuple[Layer, ...]
    after_norm: Norm

    @classmethod
    def arrange(
        cls,
        state: Mapping[str, Tensor],
        sizes: Architecture,
        *,
        device: torch.device,
        dtype: torch.dtype,
        qkv: Callable[[Linear], Linear] = lambda given: given,
    ) -> Parameters:
        """Bring a state dict to ``device`` and ``dtype``; what is there already is not copied.

        One layer at a time is read, so that a memory-mapped state dict never has to fit into RAM.

        Args:
            state: named as in fair-esm's ``ESM2.state_dict()``; other tensors in it are ignored.
            qkv: what a form makes of each layer's projection to q, k and v.

        Raises:
            UserError: a tensor is missing or has another shape than ``sizes`` ask for.
        """
        shapes = sizes.shapes()

        def get(name: str, to: torch.dtype) -> Tensor:
            if name not in state:
                raise UserError(f"the weights lack the tensor {name}: prepare them again from the checkpoint")
            tensor = state[name]
            if tuple(tensor.shape) != shapes[name]:
                raise UserError(
                    f"the weights' tensor {name} has shape {tuple(tensor.shape)} and not {shapes[name]}: "
                    "these are not the weights of the model that their manifest names"
                )
            return tensor.to(device=device, dtype=to)

        def linear(*names: str) -> Linear:
            weight, bias = (joined([get(f"{name}.{kind}", dtype) for name in names]) for kind in ("weight", "bias"))
            return Linear(weight, bias)

        def norm(name: str) -> Norm:
            return Norm(get(f"{name}.weight", torch.float32), get(f"{name}.bias", torch.float32))

        layers: list[Layer] = []
        for prefix in (f"layers.{number}." for number in range(sizes.layers)):
            inv_freq = get(f"{prefix}self_attn.rot_emb.inv_freq", torch.float32)
            layer = Layer(
                attention_norm=norm(f"{prefix}self_attn_layer_norm"),
                qkv=qkv(linear(*(f"{prefix}self_attn.{name}_proj" for name in "qkv"))),
                out=linear(f"{prefix}self_attn.out_proj"),
                final_norm=norm(f"{prefix}final_layer_norm"),
                fc1=linear(f"{prefix}fc1"),
                fc2=linear(f"{prefix}fc2"),
                inv_freq=next((one.inv_freq for one in layers if torch.equal(one.inv_freq, inv_freq)), inv_freq),
            )
            layers.append(layer)
        return cls(get("embed_tokens.weight", dtype), tuple(layers), norm("emb_layer_norm_after"))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts in one tensor, without a copy where they lie end to end in one already."""
    first = parts[0]
    storages = {part.untyped_storage().data_ptr() for part in parts}
    meet = all(one.data_ptr() + one.nbytes == other.data_ptr() for one, other in pairwise(parts))
    if len(storages) == 1 and meet and all(part.is_contiguous() for part in parts):
        return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
    return torch.cat(list(parts))


def rotary_tables(inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles (Su et al. 2021, arXiv:2104.09864), float32 in every precision.

    The frequencies are the checkpoint's own: training rounded them to float16, and recomputing them turns a
    head's slower halves by up to 0.16 rad at position 1023.

    Args:
        inv_freq: ``(d / 2,)`` from the checkpoint.
        positions: ``(T,)`` integers; BOS has position 0.

    Returns:
        Two float32 tensors ``(T, 1, d / 2)``. fair-esm repeats them over both halves of a head.
    """
    angles = torch.outer(positions.float(), inv_freq.float())
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def tables_of(layers: Iterable[Layer], positions: Tensor) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """The rotary tables of some layers by their ``inv_freq``: in the released models all layers share one."""
    return {inv_freq: rotary_tables(inv_freq, positions) for inv_freq in {layer.inv_freq for layer in layers}}


def rotate_in_place(x: Tensor, turn: Tensor) -> None:
    """Turn the pairs ``(x[i], x[i + d / 2])`` by their angles, as a product of complex numbers in float32.

    Without a compiler this is several times faster on a CPU than the usual form, products with cosine and sine
    that are then joined: four passes in place of seven, and none over rows as short as half a head.

    Args:
        x: ``(T, H, d)`` in any floating dtype, overwritten.
        turn: complex64 ``(T, 1, d / 2)``: cosine + i sine, times a scale if there is one.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first.float(), second.float()) * turn
    first.copy_(turned.real)
    second.copy_(turned.imag)


class ESM2:
    """The embedding part of an ESM-2 on one device.

    Attributes:
        attend: attention within each sequence.
        q_scale: what q is multiplied with before the rotary: ``d ** -0.5``, or 1.0 when the attention scales.
        layers_run: this form's name.
    """

    layers_run = "eager"

    def __init__(self, parameters: Parameters, sizes: Architecture, attend: PackedAttention) -> None:
        self.parameters = parameters
        self.sizes = sizes
        self.attend = attend
        self.q_scale = 1.0 if attend.scales else sizes.head_dim**-0.5

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            family=self.sizes.family,
            layers=self.sizes.layers,
            embed_dim=self.sizes.embed_dim,
            device=self.parameters.embedding.device,
            dtype=self.products_in,
            attention=self.attend.name,
            implementation=self.attend.implementation,
            layers_run=self.layers_run,
        )

    @property
    def products_in(self) -> torch.dtype:
        """The dtype that the matrix products' inputs have."""
        return self.parameters.embedding.dtype

    def __call__(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """Representations of the layers asked for.

        Args:
            tokens: ``(T,)`` integer token ids, every sequence with its BOS and EOS.
            layers: numbers from 0 (the scaled embedding) to the model's count of layers; layers above the
                highest one are not computed.

        Returns:
            For each layer float32 ``(T, D)``. The last layer alone has gone through ``emb_layer_norm_after``.
        """
        unknown = [layer for layer in layers if not 0 <= layer <= self.sizes.layers]
        if unknown:
            raise ValueError(f"layers {unknown} asked of a model with layers 0 to {self.sizes.layers}")
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]  # kernels start on the current device
            return self.run(self.embed(tokens, segments), segments, layers)

    def embed(self, tokens: Tensor, segments: Segments) -> Tensor:
        """The scaled token embedding, which is ESM-2's layer 0: ``(T,)`` to float32 ``(T, D)``.

        With token dropout, rows of mask tokens are zeroed and the rest is scaled by ``(1 - 0.15 * 0.8) /
        (1 - masked share)``, the share counted over a whole sequence with BOS and EOS (fair-esm's
        ``ESM2.forward``); without a mask token that is 0.88 exactly.
        """
        x = F.embedding(tokens, self.parameters.embedding).float()
        if not self.sizes.token_dropout:
            return x
        masked = tokens == MASK  # (T,)
        count = torch.zeros(len(segments.lengths), device=x.device).index_add_(0, segments.sequence, masked.float())
        kept = 1 - count / segments.cu_seqlens.diff()  # (sequences,)
        return x.masked_fill(masked[:, None], 0.0) * (1 - 0.15 * 0.8) / kept[segments.sequence, None]

    def run(self, x: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """The layers above the embedding ``x`` ``(T, D)``; result as :meth:`__call__`'s.

        ``x`` may be overwritten.
        """
        found = {0: x} if 0 in layers else {}
        needed = self.parameters.layers[: max(layers, default=0)]
        tables = tables_of(needed, segments.positions)
        turns = {inv_freq: torch.complex(cos, sin) for inv_freq, (cos, sin) in tables.items()}  # (T, 1, d / 2)
        for number, layer in enumerate(needed, start=1):
            x = self.layer(layer, x, turns[layer.inv_freq], segments)
            if number in layers:
                found[number] = self.parameters.after_norm(x) if number == self.sizes.layers else x
        return found

    def rotate(self, qkv: Tensor, turn: Tensor) -> None:
        """Scale q, turn q and k in place: the first two of ``(T, 3, H, d)``, by complex ``turn (T, 1, d / 2)``."""
        rotate_in_place(qkv[:, 0], turn * self.q_scale)
        rotate_in_place(qkv[:, 1], turn)

    def layer(self, p: Layer, x: Tensor, turn: Tensor, segments: Segments) -> Tensor:
        """The residual stream ``(T, D)`` after one layer; ``x`` itself is left as it was."""
        tokens, heads = len(x), self.sizes.heads
        y = p.attention_norm(x)
        qkv = p.qkv(y).view(tokens, 3, heads, -1)  # (T, 3, H, d); biases come before scale and turn
        self.rotate(qkv, turn)
        q, k, v = qkv.unbind(1)
        attended = self.attend(q, k, v, segments)  # (T, H, d)
        x = x + p.out(attended.reshape(x.shape))
        y = p.final_norm(x)
        hidden = F.gelu(p.fc1(y))  # (T, 4 D); GELU with erf, as fair-esm's
        return x + p.fc2(hidden)
