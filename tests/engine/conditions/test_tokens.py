"""Drawn features against closed forms, scikit-learn's covariances and the distances of fresh images."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from engine.conditions import tokens
from engine.conditions.tokens import Fits
from engine.errors import DataError

DRAWS = 6_000


def images(count: int, width: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(2, 3, (count, width)) @ random.normal(size=(width, width))).astype(np.float32)


def moments(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Mean and covariance within five standard errors of what is expected."""
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * spread / np.sqrt(len(draws))).all()
    error = np.abs(np.cov(draws.T) - covariance) / np.outer(spread, spread)
    assert error.max() < 5 * np.sqrt(2 / len(draws))


@pytest.mark.parametrize(("count", "width"), [(4, 9), (30, 5), (2, 3), (60, 60)])
def test_shrinkage_to_a_multiple_of_the_identity_is_that_of_scikit_learn(count: int, width: int) -> None:
    own = images(count, width).astype(np.float64)
    centred = own - own.mean(axis=0)
    identity = np.eye(width) * (centred**2).sum() / (count * width)
    assert tokens.shrinkage(centred, identity) == pytest.approx(ledoit_wolf(own)[1], rel=1e-9)


def test_shrinkage_where_there_is_nothing_to_estimate_is_whole() -> None:
    assert tokens.shrinkage(np.zeros((1, 3)), np.eye(3)) == 1.0
    assert tokens.shrinkage(np.zeros((5, 3)), np.zeros((3, 3))) == 1.0


LABELS = np.array([0] * 6 + [1] * 5 + [2] + [3] * 9, np.int32)


def expected_covariance(values: np.ndarray, fits: Fits, label: int) -> np.ndarray:
    """(1 - s) S + s W by scikit-learn's pooled covariance of linear discriminant analysis and numpy's sample
    covariance."""
    analysis = LinearDiscriminantAnalysis(store_covariance=True).fit(values, LABELS)
    pooled = analysis.covariance_ * len(values) / (len(values) - 4)
    own = values[label == LABELS]
    sample = np.cov(own.T) if len(own) > 1 else np.zeros_like(pooled)
    return (1 - fits.shrinkage[label]) * sample + fits.shrinkage[label] * pooled


@pytest.mark.parametrize("label", [0, 2])
def test_gaussian_draws_have_the_shrunken_covariance(label: int) -> None:
    values = images(len(LABELS), 8)
    fits = tokens.fit(values, LABELS, 4)
    assert (fits.shrinkage[2], 0.01 < fits.shrinkage[0] < 0.99) == (1.0, True)
    own = values[label == LABELS]
    draws = np.stack([tokens.gaussian(own, fits, label, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(draws, own.mean(axis=0, dtype=np.float64), expected_covariance(values.astype(np.float64), fits, label))
    assert np.linalg.matrix_rank(draws - draws.mean(axis=0), tol=1e-2) == 8  # 6 images span 5 directions alone


def test_a_kernel_has_its_own_mean_and_all_of_them_that_of_the_class() -> None:
    values = images(len(LABELS), 4)
    fits = replace(tokens.fit(values, LABELS, 4), bandwidth=0.6)
    own, noise = values[LABELS == 0], 0.36 * expected_covariance(values.astype(np.float64), fits, 0)
    mean, sample = own.mean(axis=0, dtype=np.float64), np.cov(own.T.astype(np.float64), bias=True)
    one = np.stack([tokens.around(own, own[2], fits, 0, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(one, mean + 0.8 * (own[2] - mean), noise)
    every = np.stack([tokens.around(own, own[seed % 6], fits, 0, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(every, mean, 0.64 * sample + noise)


def test_at_the_bandwidth_draws_are_as_far_from_the_images_as_fresh_images_are() -> None:
    random = np.random.default_rng(3)
    centres = random.normal(0, 4, (12, 6))  # clusters: a Gaussian is no good, and its draws lie too far off

    def fresh(count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = random.integers(0, 12, count)
        return (centres[chosen] + random.normal(0, 1, (count, 6))).astype(np.float32), (chosen % 2).astype(np.int32)

    (values, labels), (unseen, _) = fresh(600), fresh(600)
    fits = tokens.fit(values, labels, 2)
    assert 0 < fits.bandwidth < 1

    def near(made: np.ndarray) -> float:
        return float(np.median(cdist(made, values).min(axis=1)))

    def drawn(h: float) -> np.ndarray:
        own = [values[labels == label] for label in (0, 1)]
        asked = replace(fits, bandwidth=h)
        return np.stack([tokens.around(own[s % 2], own[s % 2][s // 2], asked, s % 2, s) for s in range(500)])

    assert near(drawn(fits.bandwidth)) > 0.9 * near(unseen)
    assert near(drawn(fits.bandwidth - 0.1)) < 1.1 * near(unseen)


def test_the_arc_keeps_lengths_and_angles() -> None:
    one, other = np.array([3.0, 0, 0], np.float32), np.array([0, 5.0, 0], np.float32)
    weights = []
    for seed in range(500):
        made = tokens.between(one, other, seed).astype(np.float64)
        assert made[2] == 0
        weight = np.arctan2(made[1], made[0]) / (np.pi / 2)  # the share of the right angle
        assert np.linalg.norm(made) == pytest.approx(3 + 2 * weight, rel=1e-5)
        weights.append(weight)
    assert kstest(weights, "uniform", args=(0.25, 0.5)).pvalue > 0.001


@pytest.mark.parametrize("other", [[0.0, 0.0], [-2.0, -4.0], [1.0, 2.0], [2.0, 4.0]])
def test_where_there_is_no_arc_it_is_the_line(other: list[float]) -> None:
    one = np.array([1.0, 2.0], np.float32)
    for seed in range(20):
        made = tokens.between(one, np.array(other, np.float32), seed)
        assert np.isfinite(made).all()
        assert abs(made[1] - 2 * made[0]) < 1e-5
        low, high = sorted((0.25 * 1 + 0.75 * other[0], 0.75 * 1 + 0.25 * other[0]))
        assert low - 1e-6 <= made[0] <= high + 1e-6


def test_draws_have_the_same_bits_whatever_the_threads() -> None:
    code = (
        "import numpy as np, hashlib; from engine.conditions import tokens\n"
        "own = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32); labels = np.arange(300) % 3\n"
        "f = tokens.Fits(own[:200], np.array([0.3, 0.5, 1.0]), 0.5)\n"
        "made = [t for s in range(20) for t in (tokens.gaussian(own, f, 1, s), tokens.around(own, own[s], f, 0, s),"
        " tokens.between(own[s], own[s + 1], s))]\n"
        "print(tokens.fit(own, labels, 3).bandwidth, hashlib.sha256(b''.join(m.tobytes() for m in made)).hexdigest())"
    )
    said = set()
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
        )
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1


def test_classes_of_one_image_are_one_line() -> None:
    names, labels = ("a", "b", "c", "d"), np.array([0, 0, 1, 3], np.int32)
    with pytest.raises(DataError) as caught:
        tokens.check("interpolation", labels, names)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("b: has one training image (and 1 more classes)")
    tokens.check("interpolation", np.array([0, 0, 2, 2], np.int32), names)
    for token in ("prior", "class_gaussian"):
        tokens.check(token, labels, names)
        with pytest.raises(DataError, match="training split: has no class of two images"):
            tokens.check(token, np.array([0, 1, 3], np.int32), names)
    for token in ("own", "class", "class_mean", "none"):
        tokens.check(token, np.array([0, 1, 3], np.int32), names)
