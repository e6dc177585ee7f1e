"""What a judge's scores say beside accuracy: balanced accuracy, macro F1 and the area under the ROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from engine.training.trainingresults import Scores

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}


def measured(logits: NDArray[Any], labels: NDArray[np.int64]) -> Scores:
    """`balanced_accuracy`, `macro_f1` and `auroc` of logits (N, C) against labels (N,), shares in [0, 1].

    Balanced accuracy is the mean recall over the classes that have images; macro F1 the mean over the classes that
    occur among the labels or the predictions; AUROC the mean over classes of one against the rest, by the softmax, ties
    counted half, and None where no class has both kinds of images.
    """
    predicted = logits.argmax(1)
    classes = logits.shape[1]
    true, found = (np.bincount(own, minlength=classes) for own in (labels, predicted))
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    held, occurs = true > 0, true + found > 0
    return {
        "balanced_accuracy": float((hits[held] / true[held]).mean()),
        "macro_f1": float((2 * hits[occurs] / (true + found)[occurs]).mean()),
        "auroc": auroc(special.softmax(logits.astype(np.float64), axis=1), labels),
    }


def auroc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """One-against-rest area under the ROC curve of scores (N, C), mean over the classes that have positives and
    negatives."""
    count = np.bincount(labels, minlength=scores.shape[1])
    areas = []
    for label in np.flatnonzero((count > 0) & (count < len(labels))):
        ranks = stats.rankdata(scores[:, label])
        above = float(ranks[labels == label].sum()) - count[label] * (count[label] + 1) / 2
        areas.append(above / (count[label] * (len(labels) - count[label])))
    return float(np.mean(areas)) if areas else None
