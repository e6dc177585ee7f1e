"""Metrics of classifiers against scikit-learn, and calibration against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from engine.training.classifier.metrics import BINS, calibration, confusion, measure, nll, top_k


@pytest.fixture(params=[3, 10, 120])
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    logits = rng.normal(0, 2, (500, request.param))
    labels = rng.integers(0, request.param, 500)
    logits[np.arange(500), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_accuracy_likelihood_and_confusion_are_sklearns(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case
    classes = probabilities.shape[1]
    found = measure(probabilities, labels)
    every = range(classes)
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=1, labels=every))
    if classes > 5:
        assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=every))
    else:
        assert found["top5"] is None
    exact = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    assert found["nll"] == pytest.approx(log_loss(labels, exact, labels=every), rel=1e-5)
    matrix = confusion_matrix(labels, probabilities.argmax(1), labels=every)
    np.testing.assert_array_equal(confusion(probabilities.argmax(1), labels, classes), matrix)
    assert found["correct"] == np.diagonal(matrix).tolist()
    assert (found["confusion"] is None) == (classes > 100)
    true, predicted, count = found["confusions"][0]
    assert matrix[true, predicted] == count == (matrix - np.diag(np.diagonal(matrix))).max()


def test_calibration_error_is_that_of_a_loop_over_bins(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case
    confidence, right = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    expected = 0.0
    for k in range(BINS):
        inside = (confidence > k / BINS) & (confidence <= (k + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    error, bins = calibration(probabilities, labels)
    assert error == pytest.approx(expected)
    assert sum(count for count, _, _ in bins) == len(labels)


def test_ties_and_certain_mistakes_have_values() -> None:
    even = np.full((4, 4), 0.25, np.float32)
    assert top_k(even, np.arange(4), 1) == 0.25
    assert top_k(even, np.arange(4), 2) == 0.5
    wrong = np.array([[1.0, 0.0]], np.float32)
    assert np.isfinite(nll(wrong, np.array([1])))
