"""When a contig is called viral or not."""

from __future__ import annotations

from dataclasses import dataclass

from virnucpro.base.errors import UserError
from virnucpro.base.settings import check_fields, default


@dataclass(frozen=True)
class CallRule:
    """When a contig is called viral or not; ``SETTINGS`` says what each is. Published constants, nothing calibrated.

    Raises:
        UserError: a value is not allowed, or ``non_viral_under`` is over ``viral_over``.
    """

    viral_over: float = default("classify.viral_over")
    non_viral_under: float = default("classify.non_viral_under")
    sure_over: float = default("classify.sure_over")
    sure_under: float = default("classify.sure_under")
    ambiguous_over: float = default("classify.ambiguous_over")

    def __post_init__(self) -> None:
        check_fields(self, "classify.")
        if self.non_viral_under > self.viral_over:
            raise UserError(
                f"viral_over is {self.viral_over} and non_viral_under {self.non_viral_under}: give two numbers, the "
                "second no larger than the first"
            )
