"""Entropies against scipy, draws against their probabilities, halves and parts against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.study.deliberate.anchor_choice import (
    anchors,
    class_error_weights,
    entropy,
    entropy_weights,
    folds,
    halves,
    parts,
)


def test_entropy_is_scipys_and_zero_for_a_sure_classifier() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(5), 20)
    assert entropy(shares) == pytest.approx(stats.entropy(shares, axis=1))
    assert entropy(np.eye(3)).tolist() == [0, 0, 0]


def test_weights_are_the_entropy_of_the_mean_classifier_above_a_floor() -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(4), (3, 6))
    assert entropy_weights(shares) == pytest.approx(stats.entropy(shares.mean(0), axis=1))
    sure = np.stack([[[1.0, 0.0], [0.5, 0.5]]])
    assert entropy_weights(sure) == pytest.approx([0.05 * np.log(2), np.log(2)])
    assert (entropy_weights(np.stack([np.eye(2)])) > 0).all()


def test_class_errors_are_smoothed_rates() -> None:
    labels = np.repeat([0, 1], 8)
    weights = class_error_weights(np.r_[np.zeros(8), np.full(8, 0.5)], labels, 2)
    assert weights == pytest.approx(np.repeat([0.1, 0.5], 8))


def test_folds_leave_every_image_out_once_and_deal_classes_evenly() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 13, 3]))
    found = folds(labels, 5, np.random.default_rng(1))
    assert set(found.tolist()) == {0, 1, 2, 3, 4}
    for label in range(3):
        counts = np.bincount(found[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_anchors_are_distinct_cover_the_classes_and_follow_their_weights() -> None:
    labels = np.repeat([0, 1, 2], [10, 10, 2])
    weights = np.r_[np.full(10, 1.0), np.full(10, 4.0), np.full(2, 1e-6)]
    counts = np.zeros(22)
    for seed in range(400):
        chosen = anchors(weights, labels, 9, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 9
        assert set(labels[chosen]) == {0, 1, 2}
        assert (np.diff(chosen) > 0).all()
        counts[chosen] += 1
    assert counts[10:20].sum() > 2 * counts[:10].sum()
    assert counts[20:].sum() == 400  # the one that every class has


def test_a_single_draw_has_the_probability_of_its_weight() -> None:
    weights = np.array([1.0, 2.0, 5.0])
    labels = np.zeros(3, np.int64)
    drawn = [int(anchors(weights, labels, 1, np.random.default_rng(seed))[0]) for seed in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx(weights / 8, abs=0.03)


def test_halves_and_parts() -> None:
    weights = np.array([0.1, 0.9, 0.5, 0.7, 0.2])
    hard, easy = halves(np.array([0, 1, 2, 4]), weights)
    assert (hard.tolist(), easy.tolist()) == ([1, 2], [0, 4])
    assert [len(half) for half in halves(np.arange(5), weights)] == [3, 2]
    assert parts(10, 3) == [4, 3, 3]
