"""MosaicBERT's forward over packed sequences, top to bottom: parameters, embedding, one layer.

A batch is T tokens of all its sequences end to end, without padding. D is the width, H the count of heads of d = D / H
channels, F the feed-forward's width. ``x`` is the stream ``(T, D)``; it and the norms, which come after each sum, are
float32 in every precision; the matrix products, and what enters and leaves attention, have the weights' dtype. There
are no positions but ALiBi's term in attention, which is float32: at a distance of 140 it is 70, where float16 steps
by 1/16 and bfloat16 by 1/2.

A faster form, which is compared with this one before it is used: :mod:`virnucpro.models.mosaic_bert.fused`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.attention import PackedAttention
from virnucpro.attention.segments import Segments
from virnucpro.base.errors import UserError
from virnucpro.models.base import ModelFacts
from virnucpro.models.mosaic_bert.sizes import LAYER_NORM_EPS, MosaicSizes, alibi_slopes


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the channels of ``(T, D)``, in float32."""

    weight: Tensor  # (D,), float32
    bias: Tensor  # (D,), float32

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, LAYER_NORM_EPS)


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer; weights in the products' dtype."""

    qkv: Tensor  # (3 D, D): queries, keys and values in this order
    qkv_bias: Tensor  # (3 D,)
    out: Tensor  # (D, D)
    out_bias: Tensor  # (D,)
    attention_norm: Norm
    gated: Tensor  # (2 F, D): what goes through GELU, then what is multiplied by it; no bias
    down: Tensor  # (D, F)
    down_bias: Tensor  # (D,)
    final_norm: Norm


@dataclass(frozen=True)
class Parameters:
    """All parameters on their device, without the pooler."""

    words: Tensor  # (vocabulary, D)
    kind: Tensor  # (D,): that of the token type 0, which all tokens have
    norm: Norm
    layers: tuple[Layer, ...]

    @classmethod
    def arrange(
        cls, state: Mapping[str, Tensor], sizes: MosaicSizes, *, device: torch.device, dtype: torch.dtype
    ) -> Parameters:
        """Bring a state dict to ``device`` and ``dtype``, tensor by tensor.

        Raises:
            UserError: a tensor is missing or has another shape than ``sizes`` ask for.
        """
        shapes = sizes.shapes()

        def get(name: str, to: torch.dtype = dtype) -> Tensor:
            if name not in state or tuple(state[name].shape) != shapes[name]:
                found = tuple(state[name].shape) if name in state else "missing"
                raise UserError(
                    f"the weights' tensor {name} is {found} and not {shapes[name]}: these are not the weights of the "
                    "model that their manifest names; prepare them again from the checkpoint"
                )
            return state[name].to(device=device, dtype=to)

        def norm(name: str) -> Norm:
            return Norm(get(f"{name}.weight", torch.float32), get(f"{name}.bias", torch.float32))

        layers = tuple(
            Layer(
                qkv=get(f"{prefix}attention.self.Wqkv.weight"),
                qkv_bias=get(f"{prefix}attention.self.Wqkv.bias"),
                out=get(f"{prefix}attention.output.dense.weight"),
                out_bias=get(f"{prefix}attention.output.dense.bias"),
                attention_norm=norm(f"{prefix}attention.output.LayerNorm"),
                gated=get(f"{prefix}mlp.gated_layers.weight"),
                down=get(f"{prefix}mlp.wo.weight"),
                down_bias=get(f"{prefix}mlp.wo.bias"),
                final_norm=norm(f"{prefix}mlp.layernorm"),
            )
            for prefix in (f"encoder.layer.{number}." for number in range(sizes.layers))
        )
        return cls(
            words=get("embeddings.word_embeddings.weight"),
            kind=get("embeddings.token_type_embeddings.weight", torch.float32)[0],
            norm=norm("embeddings.LayerNorm"),
            layers=layers,
        )


class MosaicBert:
    """A MosaicBERT on one device.

    Attributes:
        attend: attention within each sequence.
        slopes: float32 ``(H,)``, ALiBi's.
        q_scale: what q is multiplied with: ``d ** -0.5``, or 1.0 when the attention scales.
        layers_run: this form's name.
    """

    layers_run = "eager"

    def __init__(self, parameters: Parameters, sizes: MosaicSizes, attend: PackedAttention) -> None:
        self.parameters = parameters
        self.sizes = sizes
        self.attend = attend
        self.slopes = torch.tensor(alibi_slopes(sizes.heads), dtype=torch.float32, device=parameters.words.device)
        self.q_scale = 1.0 if attend.scales else sizes.head_dim**-0.5

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            family=self.sizes.family,
            layers=self.sizes.layers,
            embed_dim=self.sizes.embed_dim,
            device=self.parameters.words.device,
            dtype=self.parameters.words.dtype,
            attention=self.attend.name,
            implementation=self.attend.implementation,
            layers_run=self.layers_run,
        )

    def __call__(self, tokens: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """Representations of the layers asked for.

        Args:
            tokens: ``(T,)`` integer token ids, every sequence with its [CLS] and [SEP].
            layers: numbers from 0 (the normed embedding) to the model's count; those above the highest are not run.

        Returns:
            For each layer float32 ``(T, D)``.
        """
        unknown = [layer for layer in layers if not 0 <= layer <= self.sizes.layers]
        if unknown:
            raise ValueError(f"layers {unknown} asked of a model with layers 0 to {self.sizes.layers}")
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]  # kernels start on the current device
            return self.run(self.embed(tokens), segments, layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedding, which is layer 0: ``(T,)`` to float32 ``(T, D)``."""
        return self.parameters.norm(F.embedding(tokens, self.parameters.words).float() + self.parameters.kind)

    def run(self, x: Tensor, segments: Segments, layers: Collection[int]) -> dict[int, Tensor]:
        """The layers above the embedding ``x`` ``(T, D)``; result as :meth:`__call__`'s."""
        found = {0: x} if 0 in layers else {}
        for number, layer in enumerate(self.parameters.layers[: max(layers, default=0)], start=1):
            x = self.layer(layer, x, segments)
            if number in layers:
                found[number] = x
        return found

    def layer(self, p: Layer, x: Tensor, segments: Segments) -> Tensor:
        """The stream ``(T, D)`` after one layer."""
        tokens, heads, dtype = len(x), self.sizes.heads, p.qkv.dtype
        qkv = F.linear(x.to(dtype), p.qkv, p.qkv_bias)  # (T, 3 D)
        q, k, v = qkv.view(tokens, 3, heads, -1).unbind(1)  # (T, H, d) each
        attended = self.attend(q * self.q_scale, k, v, segments, self.slopes)  # (T, H, d)
        x = p.attention_norm(x + F.linear(attended.reshape(x.shape), p.out, p.out_bias))
        gate, up = F.linear(x.to(dtype), p.gated).chunk(2, dim=-1)  # (T, F) each
        hidden = F.gelu(gate) * up  # GELU with erf
        return p.final_norm(x + F.linear(hidden, p.down, p.down_bias))
