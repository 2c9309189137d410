"""Numbers that others have published for released weights, to compare a machine and its weights with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PublishedVectors:
    """Some channels of proteins' mean vectors, last layer: for each channel a value of each protein."""

    proteins: tuple[bytes, ...]
    channels: Mapping[int, tuple[float, ...]]

    def distance(self, means: list[Tensor]) -> float:
        """The largest difference of one of these channels; ``means`` are float32 ``(D,)`` of each protein."""
        published = torch.tensor(list(self.channels.values()), dtype=torch.float32)
        return float((torch.stack(means)[:, list(self.channels)].T - published).abs().max())


PUBLISHED = {
    "esm2_t36_3B_UR50D": PublishedVectors(
        proteins=(
            b"YFAASFAAFSSAIASFAASIALPFAAIASAAFLIASASSARFSIASFSSAIRLPLLA",
            b"STFFNRFFQFCNTFTFRRFFRRFQFRNRFFRRFNRFTFRRHRFRRFFNRFCQFCTFH",
        ),
        channels={
            0: (0.01102, 0.08435),
            160: (-0.12657, -0.11405),
            320: (-0.12869, -0.18860),
            461: (-1.81791, -0.08296),
            480: (-0.19841, -0.04272),
            640: (-0.09480, -0.32030),
            800: (0.05432, -0.00386),
            960: (0.08380, 0.08105),
            1120: (0.02862, -0.03027),
            1280: (0.13032, 0.10063),
            1440: (0.00416, 0.03046),
            1512: (1.48058, 0.40431),
            1517: (-0.58308, -0.40468),
            1542: (12.42389, 13.57237),
            1600: (0.04226, 0.08616),
            1760: (0.11522, 0.06697),
            1886: (-0.00471, -0.61050),
            1904: (0.03322, -0.48511),
            1920: (-0.10998, -0.15001),
            2080: (0.00365, -0.07496),
            2106: (-0.19460, -0.92392),
            2240: (-0.11382, 0.08458),
            2400: (-0.11967, -0.00430),
            2502: (0.74908, 0.33498),
        },
    ),
}
"""By model. 3B: ``output_1_ESM.pt`` of the original VirNucPro, whose embeddings are fair-esm's, published with
https://github.com/broadinstitute/virnucpro-broad: the channels of largest values, and every 160th."""
