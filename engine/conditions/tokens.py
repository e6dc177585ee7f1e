"""Feature vectors that no training image has: drawn between two images of a class, from its Gaussian, or around its
images.

Each is a function of the features, the class and one seed. No BLAS, whose order of summation depends on the threads,
takes part in a draw; fits, in which it does, are rounded and stored. So a vector has the same bits wherever it is
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError

FITTED = ("class_gaussian", "prior")  # tokens that are drawn from what is fitted to the features
MIDDLE = (0.25, 0.75)  # of the arc between two images: nearer to one of them a draw is its copy
BANDWIDTHS = tuple(np.round(np.arange(1, 11) / 10, 1).tolist())
ANCHORS = 1000  # images that the bandwidth is chosen on, at most
QUERIES = 100  # of them compared with all images at once
DECIMALS = 6  # of what is stored or compared: the last bits of a sum, which depend on the threads, are not among them

Features = NDArray[np.float32]
Matrix = NDArray[np.float64]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Fits:
    """What is fitted to the features (N,D) of K classes.

    The covariance of a class is (1 - s) S + s W: S its own (of n - 1), W = `root` `root`^T the pooled one within all
    classes, s in 0 to 1 its `shrinkage` (K,). `bandwidth` (0 to 1) is that of the prior's kernels.
    """

    root: Features
    shrinkage: Matrix
    bandwidth: float


def check(token: str, labels: Labels, class_names: Sequence[str]) -> None:
    """Raise DataError in one line for a token that classes with so few training images cannot give."""
    counts = np.bincount(labels, minlength=len(class_names))
    lone = np.flatnonzero(counts == 1)
    if token == "interpolation" and len(lone):
        more = f" (and {len(lone) - 1:,} more classes)" if len(lone) > 1 else ""
        what = f"has one training image{more}, so generate.visual_token interpolation has nothing to draw between"
        raise DataError(class_names[int(lone[0])], what, "set it to prior or own, or raise split.train")
    if token in FITTED and len(labels) and counts.max() < 2:
        what = f"has no class of two images, so generate.visual_token {token} has no spread to draw from"
        raise DataError("training split", what, "set it to own, or raise split.train")


def between(one: Features, other: Features, seed: int) -> Features:
    """A vector (D) on the middle half of the arc between two: spherical in direction, linear in length, at the seed's
    weight.

    A straight line between two directions passes through shorter vectors than images have; an arc keeps to lengths that
    the generator has seen (arXiv 1609.04468). Where there is no arc (one of them zero, or opposite directions) it is
    the line.
    """
    weight = MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * float(np.random.Generator(np.random.PCG64(seed)).random())
    a, b = one.astype(np.float64), other.astype(np.float64)
    long, length = (float(np.sqrt(np.einsum("d,d->", v, v))) for v in (a, b))
    line = (1 - weight) * a + weight * b
    cosine = float(np.einsum("d,d->", a, b)) / (long * length) if long and length else 1.0
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if not 1e-6 < angle < np.pi - 1e-6:
        return line.astype(np.float32)
    arc = np.sin((1 - weight) * angle) * a / long + np.sin(weight * angle) * b / length
    return (((1 - weight) * long + weight * length) * arc / np.sin(angle)).astype(np.float32)


def gaussian(own: Features, fits: Fits, label: int, seed: int) -> Features:
    """A draw (D) from the Gaussian with the mean of a class's features (n,D) and its shrunken covariance."""
    mean = own.astype(np.float64).mean(axis=0)
    return (mean + _noise(own - mean, fits, label, seed)).astype(np.float32)


def around(own: Features, anchor: Features, fits: Fits, label: int, seed: int) -> Features:
    """A draw (D) from the kernel of one image of a class (n,D): a smoothed bootstrap with the class's mean and
    covariance.

    With h the bandwidth and e ~ N(0, the shrunken covariance) it is mean + sqrt(1 - h²) (anchor - mean) + h e: over all
    images a mixture with the mean and about the covariance of the class, between the images themselves (h = 0) and its
    Gaussian (h = 1); Silverman, Density Estimation, 1986, section 6.4.
    """
    mean = own.astype(np.float64).mean(axis=0)
    noise = _noise(own - mean, fits, label, seed)
    return _kernel(mean, anchor, noise, fits.bandwidth).astype(np.float32)


def fit(values: Features, labels: Labels, classes: int) -> Fits:
    """The fits of features (N,D) of `classes` classes; a class of one image has the pooled covariance alone."""
    rows = [np.flatnonzero(labels == label) for label in range(classes)]
    centred = values.astype(np.float64)
    for own in rows:
        centred[own] -= centred[own].mean(axis=0) if len(own) else 0.0
    freedom = len(values) - sum(len(own) > 0 for own in rows)
    pooled = centred.T @ centred / max(freedom, 1)
    variances, axes = np.linalg.eigh(pooled)
    root = (axes * np.sqrt(variances.clip(min=0))).astype(np.float32)
    shrunk = np.array([round(shrinkage(centred[own], pooled), DECIMALS) for own in rows])
    return Fits(root, shrunk, _bandwidth(values, rows, Fits(root, shrunk, 1.0)))


def shrinkage(centred: Matrix, target: Matrix) -> float:
    """How far Ledoit and Wolf's estimate takes the covariance of centred features (n,D) to `target` (D,D); 1 below two
    images.

    The summed variance of the entries of S over their summed squared distance to the target (2004, lemma 2.1 and
    section
    3.3, where the target is a multiple of the identity).
    """
    count = len(centred)
    if count < 2:
        return 1.0
    own = centred.T @ centred / count
    distance = float(((own - target) ** 2).sum())
    variance = (float(((centred**2).sum(axis=1) ** 2).sum()) / count - float((own**2).sum())) / count
    return 1.0 if distance <= variance else variance / distance


def _bandwidth(values: Features, rows: Sequence[NDArray[np.int64]], fits: Fits) -> float:
    """The least bandwidth at which draws lie as far from the nearest training image as these do from each other
    (medians).

    So a draw is no nearer to an image than an unseen image would be. Chosen on at most `ANCHORS` images, evenly over
    the classes.
    """
    several = [(label, own) for label, own in enumerate(rows) if len(own) > 1]
    step = max(1, -(-sum(len(own) for _, own in several) // ANCHORS))
    chosen = [(label, row) for label, own in several for row in own[::step].tolist()]
    if not chosen:
        return BANDWIDTHS[-1]
    images, anchors = values.astype(np.float64), np.array([row for _, row in chosen])
    means = {label: images[own].mean(axis=0) for label, own in several}
    mean = np.stack([means[label] for label, _ in chosen])
    noise = np.stack([_noise(images[rows[label]] - means[label], fits, label, row) for label, row in chosen])
    wanted = _nearest(images[anchors], images, anchors)
    far = (_nearest(_kernel(mean, images[anchors], noise, h), images) >= wanted for h in BANDWIDTHS)
    return next((h for h, enough in zip(BANDWIDTHS, far, strict=True) if enough), BANDWIDTHS[-1])


def _nearest(queries: Matrix, images: Matrix, own: NDArray[np.int64] | None = None) -> float:
    """The median distance of queries (q,D) to the nearest of images (N,D), `own` (q,) left out where given; rounded."""
    squares, found = np.einsum("nd,nd->n", images, images), []
    for first in range(0, len(queries), QUERIES):
        part = queries[first : first + QUERIES]
        apart = np.einsum("qd,qd->q", part, part)[:, None] - 2 * part @ images.T + squares
        if own is not None:
            apart[np.arange(len(part)), own[first : first + QUERIES]] = np.inf
        found.append(apart.min(axis=1).clip(min=0))
    return round(float(np.sqrt(np.median(np.concatenate(found)))), DECIMALS)


def _kernel(mean: Matrix, anchors: NDArray[np.floating], noise: Matrix, h: float) -> Matrix:
    return mean + np.sqrt(1 - h * h) * (anchors - mean) + h * noise


def _noise(centred: Matrix, fits: Fits, label: int, seed: int) -> Matrix:
    """A draw (D) from N(0, (1 - s) S + s W) of a class of centred features (n,D).

    sqrt(1 - s) X^T w / sqrt(n - 1) + sqrt(s) root z with w ~ N(0, I_n), z ~ N(0, I_D) has just that covariance.
    """
    count, share = len(centred), float(fits.shrinkage[label])
    generator = np.random.Generator(np.random.PCG64(seed))
    weights, free = generator.standard_normal(count), generator.standard_normal(len(fits.root))
    own = np.einsum("n,nd->d", weights, centred) / np.sqrt(max(count - 1, 1))
    pooled = np.einsum("de,e->d", fits.root, free)
    return np.sqrt(1 - share) * own + np.sqrt(share) * pooled  # type: ignore[no-any-return]
