"""What copies and controls say of a synthetic set, in plain sentences with their numbers; the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.evaluation.controls import WORDS
from engine.evaluation.run_summary import arm_label, bracket, percent
from engine.training.measures import WORDS as METRICS

WHAT = {
    "duplicated": "The training images repeated",
    "photocopy": "Photocopies of the training images (with pixel noise of the same distance)",
    "reconstructed": "The training images through the generator's VAE",
    "augmented": "The training images with strong augmentation",
}


def largest(arms: Mapping[str, Mapping[str, Any]], kind: str) -> str | None:
    """The key of the arm of a kind with the largest multiple; never the best, which would be choosing on the test
    split."""
    keys = [key for key, arm in arms.items() if arm["kind"] == kind]
    return max(keys, key=lambda key: int(arms[key]["multiple"]), default=None)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Of a summary (`results/summary.json`): the copies of the whole set, and the best control against each kind of
    arm."""
    arms = summary["arms"]
    keys = [key for kind in ("synthetic", "mixed") if (key := largest(arms, kind)) is not None]
    out = [copies(summary, keys[0])] if keys and f"{keys[0]}_copies" in summary else []
    return out + [control(summary, key) for key in keys if f"{key}_best_control" in summary]


def copies(summary: Mapping[str, Any], key: str) -> str:
    """Whether the synthetic images of an arm copy the training images."""
    share, null = summary[f"{key}_copy_share"], summary[f"{key}_copy_share_null"]
    measured = (
        f"{percent(share)}{bracket(summary[f'{key}_copy_share_interval'], 100)} of the synthetic images "
        f"({summary['arms'][key]['multiple']}x) lie nearer to a training image than all but "
        f"{percent(null)} of held-out real "
        f"images do (in features {percent(summary[f'{key}_copy_share_features'])}; membership AUC "
        f"{summary[f'{key}_membership_auc']:.3f})"
    )
    if summary[f"{key}_copies"] == "copies":
        return f"The synthetic set holds copies of its training images: {measured}."
    return f"Copies could not be told from what real images show: {measured}."


def control(summary: Mapping[str, Any], key: str) -> str:
    """The best control against an arm: called better, worse, or not told apart, with the paired difference."""
    arms, best = summary["arms"], summary[f"{key}_best_control"]
    kind, metric = arms[best]["kind"], summary.get("metric", "accuracy")
    what, own = WHAT[kind], arm_label(arms[key])
    theirs, mine = (percent(summary[f"{name}_{metric}"]) for name in (best, key))
    difference, interval = summary[f"{key}_control_difference"], summary[f"{key}_control_difference_interval"]
    numbers = (
        f"{theirs} against {mine} {METRICS[metric]}, a difference of "
        f"{difference * 100:+.1f} points{bracket(interval, 100)}"
    )
    finding = summary[f"{key}_control_finding"]
    if finding == "better":
        return f"{what} train a better classifier than {own}: {numbers}."
    if finding == "worse":
        return f"No control trains as good a classifier as {own}; the best is {WORDS[kind]}: {numbers}."
    seeds = summary["judge_seeds"]
    told = "one judge seed cannot tell" if seeds == 1 else f"{seeds} judge seeds cannot tell them apart"
    return f"{what} may train as good a classifier as {own} ({told}): {numbers}."
