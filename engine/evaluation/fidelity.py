"""How far two sets of images are from each other in a feature space: kernel inception distance and Fréchet distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from typing_extensions import TypedDict

Floats = NDArray[np.float64]
SUBSETS, SUBSET = 50, 500


class Distances(TypedDict):
    """Two sets of images in a feature space; `images` of each."""

    kid: float
    kid_error: float
    frechet: float
    images: list[int]


def kid(one: Floats, other: Floats, seed: int = 0) -> tuple[float, float]:
    """Kernel inception distance of features (N, D) and (M, D), and its standard error over subsets.

    The unbiased squared MMD under the kernel (x.y / D + 1)^3 (arXiv 1801.01401), averaged over 50 random subsets of at
    most 500 of each. Equal distributions give 0 on average, so that it may be negative.
    """
    rng, size = np.random.default_rng(seed), min(SUBSET, len(one), len(other))
    found = [
        _mmd(one[rng.choice(len(one), size, replace=False)], other[rng.choice(len(other), size, replace=False)])
        for _ in range(SUBSETS)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(SUBSETS))


def _mmd(one: Floats, other: Floats) -> float:
    size, width = one.shape

    def kernel(a: Floats, b: Floats) -> Floats:
        return np.asarray((a @ b.T / width + 1) ** 3)

    own = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (kernel(one, one), kernel(other, other)))
    return float(own - 2 * kernel(one, other).mean())


def frechet(one: Floats, other: Floats) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the features' means and covariances (arXiv 1706.08500); biased
    upwards for few images."""
    (mean_a, cov_a), (mean_b, cov_b) = ((own.mean(0), np.cov(own, rowvar=False)) for own in (one, other))
    root = linalg.sqrtm(cov_a @ cov_b)
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root)))


def distances(one: Floats, other: Floats) -> Distances:
    """Both, for JSON."""
    value, error = kid(one, other)
    return {"kid": value, "kid_error": error, "frechet": frechet(one, other), "images": [len(one), len(other)]}
