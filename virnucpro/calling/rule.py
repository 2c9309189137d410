"""The constants of a contig's call; apart, because a command line shows them before numpy is there."""

from __future__ import annotations

from dataclasses import dataclass

from virnucpro.base.errors import UserError


@dataclass(frozen=True)
class CallRule:
    """When a contig is called viral or not. The constants are the published ones; nothing was calibrated.

    Attributes:
        viral, non_viral: a contig's score has to be over, or under, these; between them it is ambiguous.
        high, low: a window is surely of a class when its score is over ``high`` and the other's under ``low``.
        both: a window is ambiguous when both scores are over this.

    Raises:
        UserError: ``non_viral`` is over ``viral``.
    """

    viral: float = 0.3
    non_viral: float = -0.3
    high: float = 0.8
    low: float = 0.3
    both: float = 0.7

    def __post_init__(self) -> None:
        if not -1 <= self.non_viral <= self.viral <= 1:
            raise UserError(
                f"viral_over is {self.viral} and non_viral_under {self.non_viral}: give numbers from -1 to 1, the "
                "second no larger than the first"
            )
