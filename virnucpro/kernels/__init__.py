"""Triton kernels; they know no model."""
