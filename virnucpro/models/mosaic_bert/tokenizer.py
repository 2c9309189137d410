"""Nucleotides to tokens: the model's own ``tokenizer.json`` (byte-pair encoding), run by the library ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from virnucpro.base.errors import UserError
from virnucpro.base.text import short
from virnucpro.models.mosaic_bert.sizes import SPECIAL
from virnucpro.sequences.translation import NUCLEOTIDES

AT_ONCE = 4096
"""Sequences that the library gets at once; it spreads them over the CPU's cores."""

NO_LIBRARY = "DNABERT-S needs the package tokenizers: pip install 'virnucpro[dnabert]'"


class NucleotideTokenizer:
    """Tokens of several bases each (see :class:`virnucpro.models.base.Tokenizer`).

    [CLS] and [SEP] are among a sequence's own tokens, not before and after them: representations of all tokens enter
    the mean, as VirNucPro takes it.
    """

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __init__(self, text: str) -> None:
        """Args: ``text`` is the content of ``tokenizer.json``."""
        self._text = text

    @cached_property
    def _library(self) -> Any:
        return _tokenizer(self._text)

    def encode(self, sequences: Sequence[bytes], names: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each sequence, with [CLS] and [SEP]: int32 ``(tokens,)``. N and other IUPAC letters are [UNK]s.

        Raises:
            UserError: a letter that no nucleotide has; or the library is not installed.
        """
        for sequence, name in zip(sequences, names, strict=True):
            others = sequence.translate(None, NUCLEOTIDES)
            if others:
                raise UserError(
                    f"sequence {name!r} has {chr(others[0])!r}, which is no nucleotide: this model embeds nucleotides "
                    "and not proteins"
                )
        library = self._library
        # From 0.20 on; the same without places in the text, which nobody needs.
        encode = getattr(library, "encode_batch_fast", library.encode_batch)
        found: list[np.ndarray] = []
        for start in range(0, len(sequences), AT_ONCE):
            texts = [sequence.decode("ascii") for sequence in sequences[start : start + AT_ONCE]]
            found += [np.array(one.ids, dtype=np.int32) for one in encode(texts)]
        return found


def _tokenizer(text: str) -> Any:
    """The library's tokenizer, without the padding and the truncation that the file may ask for."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(NO_LIBRARY) from None
    try:
        found = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more particular
        raise UserError(
            f"the tokenizer.json that these weights keep cannot be used ({short(str(error))[1:-1]}): get the "
            "checkpoint's tokenizer.json again and prepare the weights again"
        ) from None
    found.no_padding()
    found.no_truncation()
    return found


def checked_tokenizer(text: str, path: object, vocabulary: int) -> str:
    """The text of a ``tokenizer.json``, without white space, if it is one for ``vocabulary`` tokens.

    Args:
        path: of the file, for the error.

    Raises:
        UserError: it is not BPE as DNABERT-2 has it, or has other tokens than the model.
    """
    try:
        content = json.loads(text)
        ids = sorted(content["model"]["vocab"].values())
        is_right = _is_of_this_kind(content)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, StopIteration) as error:
        reason = short(str(error))[1:-1]
        raise UserError(f"{path} is damaged or no tokenizer.json ({reason}): get the file again") from None
    if not is_right:
        raise UserError(f"{path} is the tokenizer of another model: DNABERT-S has byte pairs and {', '.join(SPECIAL)}")
    if ids != list(range(vocabulary)):
        raise UserError(f"{path} has {len(ids)} tokens and the model's embedding {vocabulary}: they do not fit")
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"))


def _is_of_this_kind(content: Any) -> bool:
    """Whether it is as DNABERT-2's: the library may end the process over others, or give tokens beyond the vocabulary.

    Raises:
        LookupError, TypeError, AttributeError, ValueError, StopIteration: entries are missing or of other types.
    """
    model, around = content["model"], content["post_processor"]
    vocabulary = model["vocab"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    special = {vocabulary[name]: name for name in SPECIAL}
    names = [next(iter(part.values()))["id"] for part in around["single"]]
    return (
        model["type"] == "BPE"
        and model["unk_token"] == SPECIAL[0]
        and special == dict(enumerate(SPECIAL))
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and all(left in vocabulary and right in vocabulary and left + right in vocabulary for left, right in pairs)
        and all(vocabulary.get(token["content"]) == token["id"] for token in content["added_tokens"])
        and around["type"] == "TemplateProcessing"
        and names == ["[CLS]", "A", "[SEP]"]
        and all(around["special_tokens"][name]["ids"] == [SPECIAL.index(name)] for name in ("[CLS]", "[SEP]"))
        and content["normalizer"] is None
        and content["pre_tokenizer"] == {"type": "Whitespace"}
    )


def demo_tokenizer(vocabulary: int) -> str:
    """A ``tokenizer.json`` of the same kind: the bases, their pairs, triplets and so on as far as there is room."""
    tokens = [*SPECIAL, *"ACGT"]
    merges: list[tuple[str, str]] = []
    singles = list("ACGT")
    longer: list[tuple[str, str]] = []
    words = singles
    while len(tokens) + len(longer) < vocabulary:
        pairs = [(word, base) for word in words for base in singles]
        longer += pairs
        words = [word + base for word, base in pairs]
    for pair in longer[: vocabulary - len(tokens)]:
        merges.append(pair)
        tokens.append("".join(pair))
    names = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    whole: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [names[0], whole, names[1]],
            "pair": [names[0], whole, names[1]],
            "special_tokens": {
                name: {"id": name, "ids": [SPECIAL.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": {name: number for number, name in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    return json.dumps(content)
