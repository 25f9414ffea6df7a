"""How compiled kernels are told in which dtype weights lie: as `native/stored.h` counts them."""

from __future__ import annotations

import torch

STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes of weights that compiled kernels read."""
