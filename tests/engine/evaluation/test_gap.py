"""The gap measures on planted differences with known answers, and against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from engine.evaluation import gap


def planted(shift: float, n: int, dimensions: int, seed: int) -> tuple[np.ndarray, ...]:
    """Two normal sets of `n` each, `shift` apart along one direction: inputs, origin, labels of two classes, groups of
    one."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=dimensions)
    direction /= np.linalg.norm(direction)
    inputs = rng.normal(size=(2 * n, dimensions))
    inputs[n:] += shift * direction
    return inputs, np.repeat([0, 1], n), np.tile([0, 1], n), np.arange(2 * n)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_by_brute_force(ties: bool) -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(70) < 30
    scores = rng.normal(size=70) + positive * 0.8
    if ties:
        scores = np.round(scores)
    m, n = 30, 40
    wins = np.array([[float(a > b) + 0.5 * (a == b) for b in scores[~positive]] for a in scores[positive]])
    variance = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
    found = gap.delong(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.error == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_a_known_shift_has_the_closed_form_auc(shift: float) -> None:
    found = gap.cross_validated(*planted(shift, 2000, 3, seed=2), gap.logistic, folds=5)
    expected = stats.norm.cdf(shift / math.sqrt(2))
    low, high = found.interval.as_list()
    assert low < expected < high
    assert abs(found.value - expected) < 0.02


def test_equal_distributions_cannot_be_told_apart() -> None:
    found = gap.cross_validated(*planted(0.0, 300, 5, seed=3), gap.logistic, folds=5)
    low, high = found.interval.as_list()
    assert low < 0.5 < high
    assert high - low < 0.15


def test_twins_stay_in_one_fold() -> None:
    """Each synthetic image is a real one with a little noise: no origin to be seen, whatever the fold of the twin
    says."""
    rng = np.random.default_rng(11)
    real = rng.normal(size=(60, 40))
    inputs = np.concatenate([real, real + rng.normal(0, 0.1, real.shape)])
    origin, labels, twins = np.repeat([0, 1], 60), np.tile(np.arange(2), 60), np.tile(np.arange(60), 2)
    split = gap.cross_validated(inputs, origin, labels, np.arange(120), gap.logistic, folds=5)
    assert split.value < 0.3
    low, high = gap.cross_validated(inputs, origin, labels, twins, gap.logistic, folds=5).interval.as_list()
    assert low < 0.5 < high


def test_intervals_cover() -> None:
    """Of 100 draws without a difference about 95 % of the intervals hold one half: 92 % at least."""
    covered = 0
    for seed in range(100):
        low, high = gap.cross_validated(*planted(0.0, 60, 2, seed=100 + seed), gap.logistic, folds=5).interval.as_list()
        covered += low < 0.5 < high
    assert covered >= 92


def test_perfectly_separated_scores_have_no_interval() -> None:
    found = gap.delong(np.arange(10.0), np.arange(10) >= 5)
    assert found.value == 1
    assert found.interval.as_list() == [None, None]


def test_the_network_sees_a_planted_pixel_and_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 200, (120, 8, 8, 3), np.uint8)
    origin, labels = np.repeat([0, 1], 60), np.tile([0, 1], 60)
    low, high = gap.cross_validated(pixels, origin, labels, np.arange(120), gap.network(30), folds=2).interval.as_list()
    assert low < 0.5 < high
    pixels[60:, 2, 2] = 255
    assert gap.cross_validated(pixels, origin, labels, np.arange(120), gap.network(120), folds=2).value > 0.9


def spanned(basis: np.ndarray, spread: list[float], n: int = 400) -> np.ndarray:
    """(n, D) points whose covariance is exactly basis diag(spread^2) basis'."""
    white = np.random.default_rng(5).normal(size=(n, len(spread)))
    white -= white.mean(0)
    white = np.linalg.qr(white)[0] * math.sqrt(n - 1)
    return white * spread @ basis.T


@pytest.mark.parametrize("degrees", [0.0, 10.0, 45.0, 90.0])
def test_rotated_subspaces_have_the_known_angle(degrees: float) -> None:
    angle = math.radians(degrees)
    first = np.eye(6)[:, :2]
    second = np.stack([np.eye(6)[0], math.cos(angle) * np.eye(6)[1] + math.sin(angle) * np.eye(6)[2]], 1)
    a, b = spanned(first, [3.0, 2.0]), spanned(second, [3.0, 2.0]) + 7
    assert gap.angles(a, b, 2) == pytest.approx([0, degrees], abs=1e-3)
    # <C_A, C_B> = 9 * 9 + 4 * 4 cos^2, the norms are both sqrt(81 + 16)
    assert gap.covariance_cka(a, b) == pytest.approx((81 + 16 * math.cos(angle) ** 2) / 97)


def test_cka_is_kornbliths_with_images_and_features_exchanged() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(50, 5)) * [1, 2, 3, 4, 5]
    x, y = (a - a.mean(0)).T, (b - b.mean(0)).T  # 5 rows of "examples"
    kornblith = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert gap.covariance_cka(a, b) == pytest.approx(kornblith)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert gap.covariance_cka(3 * a @ rotation + 1, b @ rotation) == pytest.approx(kornblith)
    assert gap.covariance_cka(a, a) == pytest.approx(1)


def test_angles_take_no_more_directions_than_there_are() -> None:
    rng = np.random.default_rng(7)
    assert len(gap.angles(rng.normal(size=(4, 10)), rng.normal(size=(9, 10)), 5)) == 3
    assert len(gap.angles(np.ones((4, 10)), rng.normal(size=(9, 10)), 5)) == 0


def test_mean_shift_in_units_of_the_spread() -> None:
    a = spanned(np.eye(3)[:, :2], [3.0, 4.0])
    assert gap.mean_shift(a, a + np.array([0, 0, 10])) == pytest.approx(2)


def test_overlap_says_none_where_nothing_varies() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], 10)
    real = rng.normal(size=(20, 4))
    real[labels == 1] = 1.0
    found = gap.overlap(real, real, labels, 2, 2)
    assert found[0] == pytest.approx({"cka": 1.0, "angle": 0.0, "shift": 0.0}, abs=1e-4)
    assert found[1] == {"cka": None, "angle": None, "shift": None}


def test_balanced_rows_are_equally_many_of_each_class_in_all_sets() -> None:
    rng = np.random.default_rng(9)
    sets = [rng.integers(0, 3, 60), rng.integers(0, 3, 30), np.repeat([0, 1, 2], 50)]
    rows = gap.balanced(sets, 3, 1000, [1, 2, None])
    counts = [np.bincount(own[chosen], minlength=3).tolist() for own, chosen in zip(sets, rows, strict=True)]
    fewest = min(np.bincount(own).min() for own in sets)
    assert counts == [[fewest] * 3] * 3
    assert rows[2][:fewest].tolist() == list(range(fewest))
    assert [len(own) for own in gap.balanced(sets, 3, 12, [1, 2, None])] == [12, 12, 12]
    assert [len(own) for own in gap.balanced([*sets, np.array([0, 1])], 3, 12, [1, 2, None, 3])] == [0] * 4
