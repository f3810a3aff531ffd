"""Normal noise that nobody can draw again: from the operating system's randomness, kept in no record."""

from __future__ import annotations

import os

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor


def secret_normal(*shape: int) -> Tensor:
    """Standard normal values, float64, by the inverse distribution function of 53 random bits each.

    A generator with a seed would make them a function of the seed. The values lie within 8.3 standard deviations, on a
    grid of 2^53 quantiles: the noise is that of theory up to floating-point rounding.
    """
    count = int(np.prod(shape))
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return torch.from_numpy(ndtri((bits.astype(np.float64) + 0.5) / 2**53)).reshape(shape)
