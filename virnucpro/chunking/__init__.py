"""Which sequences are embedded together: deduplication and chunks of equal cost."""

from virnucpro.chunking.split import SplitCounts, split_proteins

__all__ = ["SplitCounts", "split_proteins"]
