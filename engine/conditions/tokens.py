"""Feature vectors that no training image has: drawn between two images of a class, from its Gaussian, or around its images.

Each is a function of the features, the class and one seed. No BLAS, whose order of summation depends on the threads, takes part
in a draw, so a vector has the same bits wherever it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Features = NDArray[np.float32]
BANDWIDTHS = tuple(
    float(width) for width in np.round(0.1 * 1.25 ** np.arange(11), 3)
)  # 0.1 to 0.93 of the class's spread
DIGITS = 6  # decimals of a stored fit: what the last bits of a BLAS change is not among them


@dataclass(frozen=True)
class Fit:
    """What is fitted to the features of one class: `shrinkage` of its covariance (OAS) and `bandwidth` of the prior.

    The covariance is (1 - shrinkage) S + shrinkage tr(S)/D I, S being that of n; the prior's kernels have bandwidth² of it.
    """

    shrinkage: float
    bandwidth: float


def interpolated(one: Features, other: Features, seed: int) -> Features:
    """A vector (D) on the arc between two: direction by spherical, length by linear interpolation, the weight uniform by the seed.

    The straight line between features of different directions passes through shorter vectors than any image has; an arc keeps
    to lengths that the generator has seen (arXiv 1609.04468). Opposite or zero vectors have no arc and get the line.
    """
    weight = float(np.random.Generator(np.random.PCG64(seed)).random())
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.sqrt(np.einsum("d,d->", a, a)), np.sqrt(np.einsum("d,d->", b, b))
    line = (1 - weight) * a + weight * b
    if min(lengths) == 0:
        return line.astype(np.float32)
    cosine = float(np.clip(np.einsum("d,d->", a, b) / (lengths[0] * lengths[1]), -1, 1))
    angle = np.arccos(cosine)
    if angle < 1e-6 or angle > np.pi - 1e-6:
        return line.astype(np.float32)
    arc = (np.sin((1 - weight) * angle) * a / lengths[0] + np.sin(weight * angle) * b / lengths[1]) / np.sin(angle)
    return (((1 - weight) * lengths[0] + weight * lengths[1]) * arc).astype(np.float32)
