"""The controls that a synthetic set must beat: which can be made, what they hold, and whether one of them beats an
arm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.diffusion import hub
from engine.errors import MimeoError
from engine.evaluation.evaluationresults import Against, Augmentation, ControlFinding, JudgedArm, Measure
from engine.evaluation.nearest import Floats, Pixels, Space, cross, is_grey, sample
from engine.seeds import derive
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec
from engine.statistics.intervals import mean_interval, spread
from engine.storage.store import Store, address
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, Outcome, arms
from engine.training.measures import METRICS
from engine.training.strong import KINDS as AUGMENTATIONS

if TYPE_CHECKING:
    import torch

LEVEL = 0.95
PROBES = 500  # photocopies that the noise is set by
TRIALS = 12
MOST_NOISE = 255.0
CLOSE = 0.005  # of the distance
WORDS = {
    "duplicated": "duplicated real",
    "photocopy": "photocopies",
    "reconstructed": "real through VAE",
    "augmented": "augmented real",
}


@dataclass(frozen=True)
class Planned:
    """Control arms in the order of the recipe; `left_out`: why others cannot be made; `autoencoder`: the generator's
    place."""

    arms: tuple[Arm, ...]
    left_out: dict[str, str]
    autoencoder: str


def plan(spec: RunSpec, store: Store) -> Planned:
    """The controls of a spec with its multiples filled in; none where no arm has synthetic images."""
    largest = max((arm.multiple for arm in arms(spec.judge)), default=0)
    asked = list(dict.fromkeys(spec.judge.controls)) if largest else []
    left_out, place = {}, ""
    if "reconstructed" in asked:
        place, reason = _autoencoder(spec, store)
        if reason:
            asked.remove("reconstructed")
            left_out["reconstructed"] = reason
    multiples = {"duplicated": largest, "photocopy": largest}
    return Planned(tuple(Arm(kind, multiples.get(kind, 0)) for kind in asked), left_out, place)


def _autoencoder(spec: RunSpec, store: Store) -> tuple[str, str]:
    """The diffusers directory (path or URL) of the generator's VAE, or why there is none that encodes real images
    here."""
    if spec.model.checkpoint is None:
        place = address(store, "model")
    else:
        try:
            place = hub.place(spec.model.checkpoint, hub.locate(spec.model.checkpoint, spec.model.revision))
        except MimeoError as error:
            return "", f"the generator is not here ({error.what})"
    try:
        config = json.loads((Path(hub.here(place)) / "vae" / "config.json").read_bytes())
    except (OSError, ValueError, MimeoError):
        return "", "the generator has no VAE"
    found = config.get("_class_name")
    return (place, "") if found == "AutoencoderKL" else ("", f"its VAE is a {found}, which is not read here")


def photocopies(train: Arrays, count: int, noise: float, seed: int) -> Arrays:
    """`count` training images, one after another and from the start again, with Gaussian pixel noise of sd `noise` (of
    255).

    Grey sets get grey noise. Each image's noise follows from the seed and its number alone.
    """
    grey, side = is_grey(train.pixels), train.pixels.shape[1]
    rows = np.arange(count) % len(train.labels)
    out = np.empty((count, side, side, 3), np.uint8)
    for k, row in enumerate(rows):
        out[k] = _noisy(train.pixels[row], noise, _normal(seed, k, side, grey))
    return Arrays(out, train.labels[rows], np.arange(count, dtype=np.int64))


def _normal(seed: int, number: int, side: int, grey: bool) -> Floats:
    return np.random.default_rng([seed, number]).normal(size=(side, side, 1 if grey else 3))


def _noisy(pixels: Pixels, noise: float, normal: Floats) -> Pixels:
    return np.asarray(np.clip(pixels + noise * normal, 0, 255).round().astype(np.uint8))


def noise_of(
    target: float, space: Space, train: Arrays, seed: int, device: torch.device | str = "cpu"
) -> tuple[float, Floats]:
    """The sd of noise (of 255) with which photocopies lie as far from training images as `target`, and their distances.

    By regula falsi on the median of 500 photocopies with one pattern of noise each, which rises with its strength.
    Where even sd 255 does not reach the target, that is taken.
    """
    rows = sample(len(train.labels), PROBES)
    grey, side = is_grey(train.pixels), train.pixels.shape[1]
    patterns = np.stack([_normal(seed, int(row), side, grey) for row in rows])

    def distances(noise: float) -> Floats:
        return cross(space, _noisy(train.pixels[rows], noise, patterns), train.pixels, device=device).distance

    low, high, noise = (0.0, 0.0), None, min(target, MOST_NOISE)
    for _ in range(TRIALS):
        found = distances(noise)
        median = float(np.median(found))
        if abs(median - target) <= CLOSE * target or (noise == MOST_NOISE and median < target):
            break
        if median < target:
            low = (noise, median)
        else:
            high = (noise, median)
        if high is None:
            noise = min(MOST_NOISE, max(noise * target / max(median, 1e-9), noise * 1.05))
        else:
            slope = (high[0] - low[0]) / (high[1] - low[1])
            noise = min(max(low[0] + (target - low[1]) * slope, low[0] + 0.02 * (high[0] - low[0])), high[0])
    return noise, found


def strongest(
    data: Data, validation: Arrays | None, spec: JudgeSpec, device: torch.device | str = "cpu"
) -> Augmentation:
    """Which strong augmentation is the control: the best of a judge each on validation images, else RandAugment and
    CutMix."""
    from engine.training import judge_model
    from engine.training.measures import measured

    if validation is None:
        return {"kind": AUGMENTATIONS[0], "chosen_on": None, "scores": {}}
    scores = {}
    for kind in AUGMENTATIONS:
        model, _ = judge_model.train([data.train.part()], spec, data.classes, spec.seeds, device, strong=kind)
        logits = judge_model.logits(model, validation.part().pixels, device)
        right = float((logits.argmax(1) == validation.labels).mean())
        found = right if spec.metric == "accuracy" else measured(logits, validation.labels)[spec.metric]
        scores[kind] = float(found or 0.0)
    return {"kind": max(scores, key=lambda kind: scores[kind]), "chosen_on": "validation", "scores": scores}


def seed_of(spec: RunSpec) -> int:
    """The seed of photocopies."""
    return derive(spec.seed, "photocopies")


def against(told: Mapping[str, JudgedArm]) -> dict[str, Against]:
    """For each arm with synthetic images the best control, and control minus arm, paired by judge seed.

    `told`: arms with `kind`, `values` a seed, and `mean`. Intervals hold for all controls at once (Bonferroni).
    `finding` is of the
    control: better, worse, or `not told apart`, also where one seed gives no interval.
    """
    own = [key for key, arm in told.items() if arm["kind"] in WORDS]
    if not own:
        return {}
    level = 1 - (1 - LEVEL) / len(own)
    best = max(own, key=lambda key: float(told[key]["mean"]))
    out: dict[str, Against] = {}
    for key, arm in told.items():
        if arm["kind"] not in ("synthetic", "mixed"):
            continue
        differences = [c - a for c, a in zip(told[best]["values"], arm["values"], strict=True)]
        interval = mean_interval(differences, level)
        out[key] = {
            "best": best,
            "mean": told[best]["mean"],
            "difference": float(np.mean(differences)),
            "interval": interval.as_list(),
            "finding": _finding(interval.low, interval.high),
        }
    return out


def _finding(low: float | None, high: float | None) -> ControlFinding:
    if low is not None and low > 0:
        return "better"
    return "worse" if high is not None and high < 0 else "not told apart"


def measures(outcomes: Sequence[Outcome], level: float) -> dict[str, Measure]:
    """Each metric of an arm's outcomes with mean, sd and interval; those that are not known are left out."""
    out: dict[str, Measure] = {}
    for metric in METRICS:
        values = [getattr(outcome, metric) for outcome in outcomes]
        if all(value is not None for value in values):
            out[metric] = {"values": values, **spread(values, level)}
    return out
