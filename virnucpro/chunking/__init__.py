"""Which sequences are embedded together: deduplication and chunks of equal cost.

Nothing is imported here: :mod:`virnucpro.chunking.split` needs pyarrow, and the GPU part, which has none, needs
:mod:`virnucpro.chunking.cost`.
"""
