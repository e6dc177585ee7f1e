"""Drawn features against closed forms, scikit-learn's shrinkage and a brute-force likelihood."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal
from sklearn.covariance import oas

from engine.conditions import tokens
from engine.conditions.tokens import BANDWIDTHS, Fit
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
def test_shrinkage_is_that_of_scikit_learn(count: int, width: int) -> None:
    own = images(count, width).astype(np.float64)
    assert tokens.shrinkage(own - own.mean(axis=0)) == pytest.approx(oas(own)[1], rel=1e-9)


def test_shrinkage_of_what_does_not_vary_is_whole() -> None:
    assert tokens.shrinkage(np.zeros((5, 3))) == 1.0
    assert tokens.fit(np.ones((4, 3), np.float32)) == Fit(1.0, BANDWIDTHS[-1])
    assert tokens.fit(np.ones((1, 3), np.float32)).shrinkage == 0.0


def test_gaussian_draws_have_the_shrunken_covariance() -> None:
    own = images(6, 8)
    fit = tokens.fit(own)
    covariance, shrunk = oas(own.astype(np.float64))
    assert 0.01 < shrunk < 0.99
    draws = np.stack([tokens.gaussian(own, fit, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(draws, own.mean(axis=0, dtype=np.float64), covariance)
    assert np.linalg.matrix_rank(draws - draws.mean(axis=0), tol=1e-2) == 8  # 6 images span 5 directions alone


def test_a_kernel_has_its_own_mean_and_all_of_them_the_mean_and_covariance_of_the_class() -> None:
    own, fit = images(6, 4), Fit(0.3, 0.6)
    mean, sample = own.mean(axis=0, dtype=np.float64), np.cov(own.T.astype(np.float64), bias=True)
    shrunken = 0.7 * sample + 0.3 * np.trace(sample) / 4 * np.eye(4)
    one = np.stack([tokens.around(own, own[2], fit, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(one, mean + 0.8 * (own[2] - mean), 0.36 * shrunken)
    every = np.stack([tokens.around(own, own[seed % 6], fit, seed) for seed in range(DRAWS)]).astype(np.float64)
    moments(every, mean, 0.64 * sample + 0.36 * shrunken)


@pytest.mark.parametrize(("count", "width", "seed"), [(12, 3, 0), (5, 9, 1), (18, 2, 2)])
def test_the_bandwidth_is_that_of_the_greatest_likelihood_of_each_image_given_the_others(
    count: int, width: int, seed: int
) -> None:
    own = images(count, width, seed).astype(np.float64)
    own[: count // 2] += 20  # two groups: a Gaussian alone is no good
    covariance, _ = oas(own)
    mean, likelihoods = own.mean(axis=0), []
    for h in BANDWIDTHS:
        kept, total = np.sqrt(1 - h * h), 0.0
        for i in range(count):
            centres = [mean + kept * (own[j] - mean) for j in range(count) if j != i]
            logs = [multivariate_normal.logpdf(own[i], centre, h * h * covariance) for centre in centres]
            total += np.logaddexp.reduce(logs)
        likelihoods.append(total)
    assert tokens.fit(own.astype(np.float32)).bandwidth == BANDWIDTHS[int(np.argmax(likelihoods))]


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
        "own = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32); f = tokens.fit(own)\n"
        "made = [t for s in range(20) for t in (tokens.gaussian(own, f, s), tokens.around(own, own[s], f, s),"
        " tokens.between(own[s], own[s + 1], s))]\n"
        "print(f, hashlib.sha256(b''.join(m.tobytes() for m in made)).hexdigest())"
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


@pytest.mark.parametrize(
    ("token", "says"),
    [("interpolation", "nothing to draw between"), ("prior", "no spread to draw from")],
)
def test_classes_of_one_image_are_one_line(token: str, says: str) -> None:
    labels = np.array([0, 0, 1, 3], np.int32)
    with pytest.raises(DataError) as caught:
        tokens.check(token, labels, ("a", "b", "c", "d"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("b: has one training image (and 1 more classes)")
    assert says in str(caught.value)
    tokens.check(token, np.array([0, 0, 2, 2], np.int32), ("a", "b", "c"))
    tokens.check("class_gaussian", labels, ("a", "b", "c", "d"))
