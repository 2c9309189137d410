"""Which GPUs there are, whose they are, and what they can run."""

AMPERE = (8, 0)
"""The compute capability from which FlashAttention-2, bfloat16 and Triton's compiler work."""

HOPPER = 9
"""The first number of the compute capability of the GPUs that products with more in them were measured on."""
