"""Embed proteins in bulk with ESM-2: as right as fair-esm in fp32, as fast as the GPU allows."""

__version__ = "0.1.0"
