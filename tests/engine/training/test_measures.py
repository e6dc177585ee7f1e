"""The judge's measures against scikit-learn's, with ties, absent classes and two classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from engine.training.measures import measured


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (3, 1), (10, 2), (10, 3)])
def test_against_scikit_learn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(classes))
    labels = np.concatenate([np.arange(classes), rng.choice(classes, 300, p=weights)])
    logits = rng.integers(-2, 3, (len(labels), classes)) + (np.eye(classes)[labels] * rng.random((len(labels), 1)))
    found = measured(logits.astype(np.float32), labels)
    predicted = logits.astype(np.float32).argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    scores = softmax(logits.astype(np.float32).astype(np.float64), axis=1)
    own = (
        metrics.roc_auc_score(labels, scores[:, 1])
        if classes == 2
        else metrics.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    )
    assert found["auroc"] == pytest.approx(own)


def test_classes_without_images_are_left_out() -> None:
    labels = np.array([0, 0, 2, 2])
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.2, 0.1, 0.7], [0.1, 0.1, 0.8]]))
    found = measured(logits, labels)
    predicted = logits.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    per_class = [metrics.roc_auc_score(labels == k, np.exp(logits)[:, k]) for k in (0, 2)]
    assert found["auroc"] == pytest.approx(np.mean(per_class))


def test_one_class_alone_has_no_area() -> None:
    assert measured(np.zeros((3, 2)), np.zeros(3, np.int64))["auroc"] is None


def test_confident_logits_keep_their_order() -> None:
    """A float32 softmax would call 30 and 31 equal; the area must not."""
    labels = np.array([0, 1, 1, 0])
    logits = np.array([[0, 18.0], [0, 19.0], [0, 21.0], [0, 20.0]], np.float32)
    assert measured(logits, labels)["auroc"] == pytest.approx(0.75)
