"""How far synthetic images are from real ones: how well the two can be told apart, and how far their features overlap.

After the measures of figure 1 of arXiv 2508.09550. Every value stands beside the same value between real images and
other real images, which is what no gap at all looks like at these counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from engine.evaluation.evaluationresults import Overlap
from engine.statistics.intervals import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scorer = Callable[[Any, Ints, Any], Floats]  # (training inputs, their origins 0 or 1, test inputs) to test scores
LEVEL = 0.95


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve with its standard error; `interval` has no bounds where all pairs are ordered
    alike."""

    value: float
    error: float

    @property
    def interval(self) -> Interval:
        """95 % interval, on the logit scale so that it stays inside 0 to 1."""
        if self.error == 0 or not 0 < self.value < 1:
            return Interval(None, None)
        centre = math.log(self.value / (1 - self.value))
        half = float(stats.norm.ppf((1 + LEVEL) / 2)) * self.error / (self.value * (1 - self.value))
        return Interval(*(1 / (1 + math.exp(-bound)) for bound in (centre - half, centre + half)))


def delong(scores: Floats, positive: NDArray[np.bool_]) -> Auc:
    """AUC of scores (N,) and its standard error by DeLong et al. 1988 (Biometrics 44), through mid-ranks; ties count
    half."""
    above, below = scores[positive], scores[~positive]
    m, n = len(above), len(below)
    ranks = stats.rankdata(np.concatenate([above, below]))
    of_positive = (ranks[:m] - stats.rankdata(above)) / n
    of_negative = 1 - (ranks[m:] - stats.rankdata(below)) / m
    variance = of_positive.var(ddof=1) / m + of_negative.var(ddof=1) / n
    return Auc(float(of_positive.mean()), math.sqrt(float(variance)))


def cross_validated(
    inputs: NDArray[Any], origin: Ints, labels: Ints, groups: Ints, scorer: Scorer, *, folds: int, seed: int = 0
) -> Auc:
    """The mean over stratified folds of the AUC on images that the scorer was not trained on.

    `inputs` (N, ...), `origin` (N,) 0 real or 1 synthetic, `labels` (N,) classes; folds are stratified by both. What
    has one number in `groups` (N,) is never split: a synthetic image resembles the real one that it was drawn after,
    and with one of the two in training the other is taken for the wrong origin, which sinks the AUC below one half.
    Each fold's test images train the other folds' scorers, so folds are not independent: with v the mean of their
    DeLong variances, that of the mean is taken as v (1/K + 1/(K - 1)), the correction of Nadeau and Bengio 2003 (Mach.
    Learn. 52). With v / K alone 95 % intervals of equal sets hold one half in 84 % of draws; with this in about 97 %.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    strata = labels * 2 + origin
    found = []
    cuts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in cuts.split(inputs, strata, groups):
        scores = scorer(inputs[train], origin[train], inputs[test])
        found.append(delong(scores, origin[test] == 1))
    error = math.sqrt(float(np.mean([auc.error**2 for auc in found])) * (1 / folds + 1 / (folds - 1)))
    return Auc(float(np.mean([auc.value for auc in found])), error)


def logistic(train: Floats, origin: Ints, test: Floats) -> Floats:
    """Log-odds (M,) of test features (M, D) by an L2 logistic regression (C = 1) on standardised training features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return np.asarray(model.fit(train, origin).decision_function(test))


def network(steps: int, width: int = 16, seed: int = 0, device: Any = "cpu") -> Scorer:
    """The judge's small CNN as a scorer of pixels (N, S, S, 3) uint8, trained for `steps` steps without
    augmentation."""
    import torch

    from engine.spec.recipe import JudgeSpec
    from engine.training import judge_model

    spec = JudgeSpec(steps=steps, width=width, augment="none")

    def score(train: NDArray[np.uint8], origin: Ints, test: NDArray[np.uint8]) -> Floats:
        part = judge_model.Part(torch.tensor(train), torch.tensor(origin))
        model, _ = judge_model.train([part], spec, 2, seed, device)
        with torch.inference_mode():
            chunks = torch.tensor(test).split(judge_model.EVALUATION_BATCH)
            logits = torch.cat([model(judge_model.normalise(chunk.to(device))).cpu() for chunk in chunks])
        return (logits[:, 1] - logits[:, 0]).double().numpy()

    return score


def covariance_cka(real: Floats, other: Floats) -> float:
    """Linear CKA of two sets of different images in one feature space, from features (n, D) and (m, D); 0 to 1.

    Kornblith et al., arXiv 1905.00414, compare two feature spaces on one set of images through the Gram matrices of the
    images. Here the images differ and the features are the same, so images and features change places: with A and B
    centred by their own means and C_A = A'A / (n - 1), C_B = B'B / (m - 1) the covariances of the features,

        CKA = <C_A, C_B>_F / (||C_A||_F ||C_B||_F).

    1: equal covariances up to a factor; 0: no direction in which both vary. It does not see the distance of the means.
    NaN where a set does not vary.
    """
    a, b = np.cov(real, rowvar=False).reshape(-1), np.cov(other, rowvar=False).reshape(-1)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 0 else math.nan


def angles(real: Floats, other: Floats, dimensions: int) -> Floats:
    """Principal angles (k,) in degrees, smallest first, between the leading k principal directions of features (n, D),
    (m, D).

    k is `dimensions`, or less where the images or the features span less.
    """
    first, second = _directions(real), _directions(other)
    k = min(dimensions, first.shape[1], second.shape[1])
    if k == 0:
        return np.empty(0)
    return np.sort(np.degrees(linalg.subspace_angles(first[:, :k], second[:, :k])))


def _directions(features: Floats) -> Floats:
    """Principal directions (D, r) of positive variance, largest first."""
    _, values, rows = np.linalg.svd(features - features.mean(0), full_matrices=False)
    kept = values > values.max(initial=0) * 1e-6
    return np.asarray(rows[kept].T)


def mean_shift(real: Floats, other: Floats) -> float:
    """Distance of the means in units of the real set's spread, the root of the trace of its covariance; NaN without
    spread."""
    spread = math.sqrt(float(real.var(axis=0, ddof=1).sum()))
    return float(np.linalg.norm(real.mean(0) - other.mean(0))) / spread if spread > 0 else math.nan


def overlap(real: Floats, other: Floats, labels: Ints, classes: int, dimensions: int) -> list[Overlap]:
    """CKA, mean principal angle and mean shift of each class; `real` and `other` (N, D) have the same `labels` (N,).

    None where a class does not vary.
    """
    out: list[Overlap] = []
    for label in range(classes):
        a, b = real[labels == label], other[labels == label]
        found = angles(a, b, dimensions)
        angle = float(found.mean()) if len(found) else math.nan
        out.append({"cka": _known(covariance_cka(a, b)), "angle": _known(angle), "shift": _known(mean_shift(a, b))})
    return out


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def balanced(labels: Sequence[Ints], classes: int, most: int, seeds: Sequence[int | None]) -> list[Ints]:
    """Rows of each set of labels such that all have equally many images of each class, sorted by class.

    As many as the scarcest class of any set has, and at most `most` in all; of each class they are drawn by the set's
    seed, or the first ones where it is None. Empty where a class is missing from a set.
    """
    fewest = min(int(np.bincount(own, minlength=classes)[:classes].min()) for own in labels)
    each = min(fewest, most // classes)
    out = []
    for own, seed in zip(labels, seeds, strict=True):
        chosen = []
        for label in range(classes):
            rows = np.flatnonzero(own == label)
            if seed is not None:
                rows = np.random.default_rng([seed, label]).permutation(rows)
            chosen.append(rows[:each])
        out.append(np.concatenate(chosen))
    return out
