"""Feature vectors that no training image has: drawn between two images of a class, from its Gaussian, or around its images.

Each is a function of the features, the class and one seed. No BLAS, whose order of summation depends on the threads, takes part
in a draw; fits, in which it does, are rounded and stored. So a vector has the same bits wherever it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError

FITTED = ("class_gaussian", "prior")  # tokens that need a fit of each class
ALONE = {"interpolation": "nothing to draw between", "prior": "no spread to draw from"}
MIDDLE = (0.25, 0.75)  # of the arc between two images: nearer to one of them a draw is its copy
BANDWIDTHS = tuple(np.round(0.1 * 1.25 ** np.arange(11), 3).tolist())  # 0.1 to 0.931 of the spread of the class
DECIMALS = 6  # of a stored fit: the last bits of a sum are not among them

Features = NDArray[np.float32]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """What is fitted to one class: `shrinkage` of its covariance (0 to 1), `bandwidth` of the prior (0 to 1)."""

    shrinkage: float
    bandwidth: float


def check(token: str, labels: NDArray[np.int32], class_names: Sequence[str]) -> None:
    """Raise DataError in one line for a token that a class of a single training image cannot give."""
    lone = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 1) if token in ALONE else ()
    if len(lone):
        more = f" (and {len(lone) - 1:,} more classes)" if len(lone) > 1 else ""
        what = f"has one training image{more}, so generate.visual_token {token} has {ALONE[token]}"
        raise DataError(class_names[int(lone[0])], what, "set it to own or class_gaussian, or raise split.train")


def between(one: Features, other: Features, seed: int) -> Features:
    """A vector (D) on the middle half of the arc between two: spherical in direction, linear in length, at the seed's weight.

    A straight line between two directions passes through shorter vectors than images have; an arc keeps to lengths that the
    generator has seen (arXiv 1609.04468). Where there is no arc (one of them zero, or opposite directions) it is the line.
    """
    weight = MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * float(_generator(seed).random())
    a, b = one.astype(np.float64), other.astype(np.float64)
    long, length = (float(np.sqrt(np.einsum("d,d->", v, v))) for v in (a, b))
    line = (1 - weight) * a + weight * b
    cosine = float(np.einsum("d,d->", a, b)) / (long * length) if long and length else 1.0
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if not 1e-6 < angle < np.pi - 1e-6:
        return line.astype(np.float32)
    arc = np.sin((1 - weight) * angle) * a / long + np.sin(weight * angle) * b / length
    return (((1 - weight) * long + weight * length) * arc / np.sin(angle)).astype(np.float32)


def gaussian(own: Features, fit: Fit, seed: int) -> Features:
    """A draw (D) from the Gaussian with the mean and the shrunken covariance of a class's features (n,D)."""
    mean = own.astype(np.float64).mean(axis=0)
    return (mean + _noise(own - mean, fit.shrinkage, seed)).astype(np.float32)


def around(own: Features, anchor: Features, fit: Fit, seed: int) -> Features:
    """A draw (D) from the kernel of one image of the class (n,D): a smoothed bootstrap with the class's mean and covariance.

    With h the bandwidth and e ~ N(0, shrunken covariance) it is mean + sqrt(1 - h²) (anchor - mean) + h e: over all images a
    mixture whose mean is that of the class, and whose covariance is the class's between h = 0, the images themselves,
    and h = 1, the Gaussian (Silverman, Density Estimation, 1986, section 6.4).
    """
    mean = own.astype(np.float64).mean(axis=0)
    noise = _noise(own - mean, fit.shrinkage, seed)
    h = fit.bandwidth
    return (mean + np.sqrt(1 - h * h) * (anchor - mean) + h * noise).astype(np.float32)


def fit(own: Features) -> Fit:
    """The fit of a class's features (n,D); those of fewer than two images have no spread, and get zero shrinkage."""
    if len(own) < 2 or not own.shape[1]:
        return Fit(0.0, BANDWIDTHS[-1])
    centred = own.astype(np.float64) - own.astype(np.float64).mean(axis=0)
    shrunk = round(shrinkage(centred), DECIMALS)
    return Fit(shrunk, _bandwidth(centred, shrunk))


def shrinkage(centred: Matrix) -> float:
    """How far Oracle Approximating Shrinkage takes the covariance (of n) of centred features (n,D) to a multiple of the identity.

    Chen et al. 2010, equation 23, in the form of `sklearn.covariance.oas`.
    """
    count, width = centred.shape
    gram = (
        centred @ centred.T if count < width else centred.T @ centred
    )  # the same trace and norm, the smaller of the two
    mean_variance = float(np.trace(gram)) / (count * width)
    mean_square = float((gram**2).sum()) / (count * width) ** 2
    over = (count + 1) * (mean_square - mean_variance**2 / width)
    return 1.0 if over <= 0 else min(1.0, (mean_square + mean_variance**2) / over)


def _bandwidth(centred: Matrix, shrunk: float) -> float:
    """The bandwidth of `BANDWIDTHS` under which each image of the class is likeliest, given kernels around all others."""
    count = len(centred)
    values, vectors = np.linalg.eigh(centred.T @ centred / count)
    variances = (1 - shrunk) * values.clip(min=0) + shrunk * values.clip(min=0).mean()
    seen = variances > variances.max() * 1e-9  # no more directions than the class spreads in
    if not seen.any():
        return BANDWIDTHS[-1]
    white = centred @ vectors[:, seen] / np.sqrt(variances[seen])
    squares, products = (white**2).sum(axis=1), white @ white.T
    found = []
    for h in BANDWIDTHS:
        kept = np.sqrt(1 - h * h)
        logs = -(squares[:, None] - 2 * kept * products + kept**2 * squares[None, :]) / (2 * h * h)
        np.fill_diagonal(logs, -np.inf)
        top = logs.max(axis=1)
        likelihood = (top + np.log(np.exp(logs - top[:, None]).sum(axis=1))).mean() - seen.sum() * np.log(h)
        found.append(round(float(likelihood), DECIMALS))
    return BANDWIDTHS[int(np.argmax(found))]


def _noise(centred: Matrix, shrunk: float, seed: int) -> Matrix:
    """A draw (D) from N(0, (1 - shrunk) S + shrunk tr(S)/D I), S the covariance (of n) of centred features (n,D).

    sqrt(1 - shrunk) X^T w / sqrt(n) + sqrt(shrunk tr(S)/D) z with w ~ N(0, I_n), z ~ N(0, I_D) has just that covariance.
    """
    count, width = centred.shape
    generator = _generator(seed)
    weights, free = generator.standard_normal(count), generator.standard_normal(width)
    along = np.einsum("n,nd->d", weights, centred) / np.sqrt(count)
    variance = np.einsum("nd,nd->", centred, centred) / (count * width) if width else 0.0
    return np.sqrt(1 - shrunk) * along + np.sqrt(shrunk * variance) * free  # type: ignore[no-any-return]


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
