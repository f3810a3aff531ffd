"""Normal noise from the operating system's random source, which cannot be reproduced and is not recorded."""

from __future__ import annotations

import os

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor


def secret_normal(*shape: int) -> Tensor:
    """Return standard normal values, float64, by the inverse distribution function of 53 random bits each.

    A seeded generator is not used, because whoever knows the seed could reproduce the noise. The values are quantiles
    on a grid of 2^53, all within 8.3 standard deviations, so their distribution is exact up to floating-point rounding.
    """
    count = int(np.prod(shape))
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return torch.from_numpy(ndtri((bits.astype(np.float64) + 0.5) / 2**53)).reshape(shape)
