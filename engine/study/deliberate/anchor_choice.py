"""Which training images are the anchors of the next round: drawn by what the classifier so far finds hard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FLOOR = 0.05  # of the largest weight: no image is left out for good


def entropy(probabilities: Floats) -> Floats:
    """Of each row's distribution, in nats: (..., N, C) to (..., N)."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(-1)


def entropy_weights(probabilities: Floats) -> Floats:
    """(N,) weights of anchors from the probabilities (J, N, C) of J classifiers: the entropy of their mean, above a
    floor."""
    found = entropy(probabilities.mean(0))
    return np.maximum(found, FLOOR * max(float(found.max()), 1e-12))


def class_error_weights(wrong: Floats, labels: Ints, classes: int) -> Floats:
    """(N,) weights of anchors: the error rate of their class, (errors + 1) / (images + 2) (Laplace).

    `wrong` (N,): the share of its classifiers that have a training image wrong.
    """
    errors = np.bincount(labels, weights=wrong, minlength=classes)
    rate = (errors + 1) / (np.bincount(labels, minlength=classes) + 2)
    return rate[labels]


def folds(labels: Ints, count: int, rng: np.random.Generator) -> Ints:
    """(N,) the fold, from 0, in which each image is left out: each class is dealt out evenly, in random order."""
    found = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        found[rows] = (np.arange(len(rows)) + rng.integers(count)) % count
    return found


def anchors(weights: Floats, labels: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` rows drawn without replacement in proportion to their weights, one of each class at least; rising.

    By the keys of Efraimidis and Spirakis (2006, Inf. Process. Lett. 97): the largest u^(1 / weight), u uniform.
    """
    keys = np.log(rng.uniform(size=len(weights))) / weights
    order = np.argsort(-keys, kind="stable")
    _, first = np.unique(labels[order], return_index=True)
    chosen = order[np.sort(first)]
    rest = order[~np.isin(order, chosen)]
    return np.sort(np.concatenate([chosen, rest])[: max(count, len(chosen))])


def halves(chosen: Ints, weights: Floats) -> tuple[Ints, Ints]:
    """The harder half of the chosen rows and the others; ties by row."""
    order = chosen[np.argsort(-weights[chosen], kind="stable")]
    middle = -(-len(order) // 2)
    return np.sort(order[:middle]), np.sort(order[middle:])


def parts(total: int, rounds: int) -> list[int]:
    """`total` images over the rounds as evenly as whole numbers allow."""
    return [total // rounds + (k < total % rounds) for k in range(rounds)]
