"""The choice of an attention for a device and a dtype."""

from __future__ import annotations

import logging

import torch

from virnucpro.models.attention.base import PackedAttention
from virnucpro.models.attention.runs import RunsAttention


def choose_attention(device: torch.device, dtype: torch.dtype, logger: logging.Logger) -> PackedAttention:
    return RunsAttention()
