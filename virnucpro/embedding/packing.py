"""Batches under a token budget."""

from __future__ import annotations

import numpy as np

SPECIAL_TOKENS = 2
"""BOS and EOS, which every piece gets."""


def packing_order(lengths: np.ndarray) -> np.ndarray:
    """Longest first, equal lengths in their given order.

    Memory is shortest at the start, so a budget that does not fit is found at once; runs of equal
    length stay together, which the CPU's attention works on.
    """
    return np.argsort(-np.asarray(lengths), kind="stable")


def batch_end(tokens_before: np.ndarray, start: int, budget: int) -> int:
    """End of the batch that begins at piece ``start``: as many pieces as fit into ``budget``, at least one.

    Args:
        tokens_before: int64 ``(pieces + 1,)``: tokens before each piece in packing order, and all tokens.
    """
    end = int(np.searchsorted(tokens_before, tokens_before[start] + budget, side="right")) - 1
    return max(end, start + 1)


def padding_avoided(lengths: np.ndarray, budget: int) -> float:
    """Share (0 to 1) of padding among the tokens of padded batches in file order, all of it avoided by packing.

    A batch is filled until proteins times the longest would exceed ``budget``, which is how
    esm-extract fills one (it sorts by length first; a plain loop over a file does not).
    """
    padding = count = longest = held = tokens_in_all = 0
    for tokens in (int(length) + SPECIAL_TOKENS for length in lengths):
        if count and (count + 1) * max(longest, tokens) > budget:
            padding += count * longest - held
            count = longest = held = 0
        count += 1
        longest = max(longest, tokens)
        held += tokens
        tokens_in_all += tokens
    padding += count * longest - held
    return padding / max(padding + tokens_in_all, 1)
