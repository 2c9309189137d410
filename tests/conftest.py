"""What all tests share: few threads, so that the suite is a good neighbour."""

from __future__ import annotations

import torch

torch.set_num_threads(2)
