"""Read MosaicBERT out of a checkpoint with the published names; a tensor too few or too many is an error."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.checkpoints.files import TOKENIZER
from virnucpro.checkpoints.tensors import StoredTensors, layer_count
from virnucpro.checkpoints.torch_file import plain_tensor
from virnucpro.models.base import Checkpoint
from virnucpro.models.mosaic_bert.sizes import MosaicSizes
from virnucpro.models.mosaic_bert.tokenizer import checked_tokenizer

FIRST = "encoder.layer.0.attention.self.Wqkv.weight"
"""A tensor that no other kind of BERT has."""

UNUSED = ("pooler.", "cls.", "classifier.")
"""Heads; representations do without them."""

HEAD_DIM = 64
"""Channels of a head in every published model; a configuration beside the tensors may say otherwise."""

LARGEST_TOKENIZER = 1 << 24
"""Bytes of ``tokenizer.json``; DNABERT-S's has 168,000."""


def find_mosaic(stored: StoredTensors) -> Checkpoint[MosaicSizes] | None:
    """MosaicBERT among stored tensors, under whatever prefix training put before the names.

    Returns:
        None where nothing there is like it.

    Raises:
        UserError: it is like it, but incomplete, damaged, of another kind, or without its tokenizer.
    """
    prefixes = stored.prefixes(FIRST)
    if not prefixes:
        return None
    if len(prefixes) > 1:
        raise UserError(f"{stored.path} holds several models: save the one that you mean alone")
    tensors = {
        name.removeprefix(prefixes[0]): tensor
        for name, tensor in stored.tensors.items()
        if name.startswith(prefixes[0]) and not name.removeprefix(prefixes[0]).startswith(UNUSED)
    }
    sizes = _sizes(stored, tensors)
    shapes = sizes.shapes()
    missing, strange = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        raise UserError(f"{stored.path} is not complete: {short(missing[0])} is missing ({len(missing)} tensors are)")
    if strange:
        raise UserError(f"{stored.path} is of another model: DNABERT-S has no tensor {short(strange[0])}")
    state = {name: plain_tensor(stored.path, name, tensors[name], shape) for name, shape in shapes.items()}
    return Checkpoint(sizes, state, _tokenizer(stored, sizes.vocabulary))


def _sizes(stored: StoredTensors, tensors: Mapping[str, Tensor]) -> MosaicSizes:
    """Sizes by the tensors' shapes; the heads by the configuration."""

    def shape(name: str) -> tuple[int, int]:
        if name not in tensors:
            raise UserError(f"{stored.path} is not complete: {short(name)} is missing")
        found = tuple(plain_tensor(stored.path, name, tensors[name]).shape)
        if len(found) != 2 or 0 in found:
            raise UserError(f"{stored.path} is damaged: {short(name)} has shape {short(found)}")
        return found

    vocabulary, embed_dim = shape("embeddings.word_embeddings.weight")
    _, hidden = shape("encoder.layer.0.mlp.wo.weight")
    heads = (stored.config or {}).get("num_attention_heads", max(1, embed_dim // HEAD_DIM))
    if not isinstance(heads, int) or heads < 1 or embed_dim % heads:
        raise UserError(f"{stored.path}: {embed_dim} channels cannot be shared by {short(heads)} heads")
    return MosaicSizes(layer_count(tensors, "encoder.layer."), embed_dim, heads, hidden, vocabulary)


def _tokenizer(stored: StoredTensors, vocabulary: int) -> str:
    path = stored.files.tokenizer
    if path is None:
        raise UserError(
            f"{stored.path} has no {TOKENIZER} beside it, which says what the model's tokens are: put it there"
        )
    try:
        if path.stat().st_size > LARGEST_TOKENIZER:
            raise UserError(f"{path} is larger than any tokenizer ({path.stat().st_size:,} bytes)")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path} is damaged: it is no text; get the file again") from None
    return checked_tokenizer(text, path, vocabulary)
