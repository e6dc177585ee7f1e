"""What a classifier's probabilities say against the true classes: accuracy, calibration, confusion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.training.trainingresults import Measured

BINS = 15
MATRIX_CLASSES = 100
MAX_CONFUSIONS = 200
TINY = 1e-12


def top_k(probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    """Share of images whose class is among the k most probable; equal ones count as sorted by class number."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1])[None] < labels[:, None]
    ahead = (probabilities > own).sum(1) + ((probabilities == own) & earlier).sum(1)
    return float((ahead < k).mean())


def nll(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats; probabilities below 1e-12 count as that."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(own, TINY)).mean())


def calibration(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, list[list[float]]]:
    """Expected calibration error over 15 equal bins of the top probability (arXiv 1706.04599, eq. 3), and the bins.

    Bins are (lower, upper]; each is [images, mean confidence, accuracy], zeros where it is empty.
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(number, minlength=BINS)
    mean = np.bincount(number, confidence, BINS) / np.maximum(count, 1)
    hit = np.bincount(number, right, BINS) / np.maximum(count, 1)
    error = float((count / len(labels) * np.abs(hit - mean)).sum())
    return error, [[int(c), float(m), float(h)] for c, m, h in zip(count, mean, hit, strict=True)]


def confusion(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """(C, C) counts: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def measure(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Measured:
    """JSON-ready: `top1`, `top5` (None for five classes or fewer), `nll`, `ece` with `calibration`, `correct` a class,
    `confusions`.

    `confusions`: [true, predicted, count] with the largest first, at most 200; `confusion`: the whole matrix up to 100
    classes.
    """
    classes = probabilities.shape[1]
    matrix = confusion(probabilities.argmax(1), labels, classes)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    mistakes = [[int(k // classes), int(k % classes), int(wrong.flat[k])] for k in order if wrong.flat[k]]
    ece, bins = calibration(probabilities, labels)
    return {
        "images": len(labels),
        "top1": top_k(probabilities, labels, 1),
        "top5": top_k(probabilities, labels, 5) if classes > 5 else None,
        "nll": nll(probabilities, labels),
        "ece": ece,
        "calibration": bins,
        "correct": np.diagonal(matrix).tolist(),
        "confusions": mistakes,
        "confusion": matrix.tolist() if classes <= MATRIX_CLASSES else None,
    }
