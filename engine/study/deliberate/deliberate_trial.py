"""One seed of the study: one generator, the static set, and the rounds of every criterion, in one Ray Train worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine import output
from engine.cluster.board import Board
from engine.conditions import table
from engine.images import catalog as catalogs
from engine.spec import RunSpec
from engine.spec.studies import DeliberateSpec
from engine.statistics.nested import judge_seeds
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from engine.study.ablation_arms import changed
from engine.study.choice import told
from engine.study.deliberate.anchor_choice import anchors, class_error_weights, entropy_weights, folds, halves, parts
from engine.study.judge_reading import VALIDATION, Reading, read
from engine.study.studyresults import ArmTrial, Round
from engine.study.trial import Shared, quiet, synthetic_set, train_generator
from engine.training.judge_data import Arrays, synthetic_images
from engine.training.judge_fit import Arm, Data
from engine.training.trainingresults import ArmKind

RESULTS = output.DELIBERATE_TRIALS
STATIC = "static"
SETS: tuple[ArmKind, ...] = ("synthetic", "mixed")


@dataclass(frozen=True)
class Study:
    """What all trials have in common; `shared.held` are the images that arms are scored on and nothing else."""

    spec: RunSpec
    shared: Shared

    @property
    def asked(self) -> DeliberateSpec:
        """The recipe's section."""
        return section(self.spec)


def section(spec: RunSpec) -> DeliberateSpec:
    """The recipe's deliberate section, or the default one."""
    return spec.deliberate or DeliberateSpec()


def name_of(seed: int, arm: str, split: str = VALIDATION) -> str:
    """Where an arm's accuracies of one seed on a split lie."""
    return f"{RESULTS}/{split}/seed-{seed}-{arm}.json"


def run(study: Study, work: tuple[int, str], device: str, board: Board | None = None) -> dict[str, Any]:
    """What the judges of one generator seed and arm read, and what each round of it chose."""
    seed, arm = work
    study = replace(study, shared=replace(study.shared, board=board))
    spec = changed(study.spec, {}, seed)
    drawn, history = _drawn(study, spec, arm, device)
    return {**_scores(study, spec, drawn, device), "rounds": history}


def settings(spec: RunSpec) -> dict[str, object]:
    """What decides the accuracies: results of other settings are refused."""
    from engine.spec import identity

    asked = section(spec).model_dump(mode="json")
    mixing = {} if spec.judge.mixing == "equal" else {"mixing": spec.judge.mixing}  # rounds once paid no heed to it
    return {
        "recipe": identity(spec),
        **{key: asked[key] for key in ("rounds", "share", "hard_guidance", "folds")},
        **mixing,
    }


def _drawn(study: Study, spec: RunSpec, arm: str, device: str) -> tuple[Arrays, list[Round]]:
    """An arm's images, as many as any other's, and what each round chose."""
    static = synthetic_set(spec, STATIC, train_generator(spec, study.shared, device), study.shared, device)
    whole = _images(spec, static)
    if arm == STATIC:
        return whole, []
    sizes = parts(spec.generate.count, study.asked.rounds)
    so_far = [whole.below(sizes[0])]
    history: list[Round] = []
    for number, size in enumerate(sizes[1:], start=1):
        weights = _weights(study, spec, arm, _joined(so_far), device)
        rng = np.random.default_rng([spec.seed, number, study.asked.by.index(arm)])
        labels = study.shared.train.labels
        chosen = anchors(weights, labels, round(study.asked.share * len(labels)), rng)
        counts = np.bincount(labels[chosen], minlength=len(study.shared.catalog.class_names))
        history.append({"images": size, "anchors": len(chosen), "classes": counts.tolist()})
        for part, rows, images, guidance in _sets(study, chosen, weights, size, spec):
            name = f"{arm}-round-{number}-{part}"
            so_far.append(_round(study, spec, static, name, rows, images, guidance, device))
    return _joined(so_far), history


def _sets(
    study: Study, chosen: np.ndarray, weights: np.ndarray, size: int, spec: RunSpec
) -> list[tuple[str, np.ndarray, int, float]]:
    """The sets of a round as (name, anchors, images, guidance): one, or the harder half and the others."""
    hard = study.asked.hard_guidance
    if hard is None:
        return [("all", chosen, size, spec.generate.guidance_scale)]
    harder, easier = halves(chosen, weights)
    first, second = parts(size, 2)
    found = [("hard", harder, first, hard), ("easy", easier, second, spec.generate.guidance_scale)]
    return [entry for entry in found if entry[2] and len(entry[1])]


def _round(
    study: Study, spec: RunSpec, static: Store, name: str, rows: np.ndarray, count: int, guidance: float, device: str
) -> Arrays:
    """Draw `count` images from these anchors into an output of their own; the generator and conditions are the static
    set's."""
    from engine.diffusion import checkpoint as checkpoints
    from engine.generation import generation_job as generation
    from engine.training.matching.matching_precheck import lora_of, model_of

    keys = study.shared.catalog.split("train").take(rows)["key"].to_pylist()
    held = catalogs.restrict(study.shared.catalog, keys)
    own_seed = int(table.keys_digest([str(spec.seed), name])[:8], 16)
    asked = changed(spec, {"generate.count": count, "generate.guidance_scale": guidance}, own_seed)
    store = open_store(f"{study.shared.url}/trials/seed-{spec.seed}/{name}")
    claim(store, asked)
    if not store.exists(catalogs.DONE):
        catalogs.copy(held, open_store(study.shared.url), store)
    table.copy(static, store, keys)
    tuned = model_of(spec, static)
    path = str(tuned or spec.model.checkpoint or train_generator(spec, study.shared, device))
    model = checkpoints.inspect(spec.model.model_copy(update={"checkpoint": path}), spec.images.size)
    known, lora = table.load(store, asked), lora_of(spec, static)
    generation.generate(asked, store, model, known, held, quiet(), lora=lora, here=device)
    return _images(asked, store)


def _weights(study: Study, spec: RunSpec, arm: str, synthetic: Arrays, device: str) -> np.ndarray:
    """How likely each training image is an anchor, from classifiers trained on the OTHER real images and the synthetic
    ones so far.

    Folds of training images are left out in turn, `judge.seeds` classifiers a fold: one that was trained on an image is
    sure of it. Synthetic images that were drawn after an image are not left out with it.
    """
    from engine.training import judge_model

    train, classes = study.shared.train, len(study.shared.catalog.class_names)
    fold = folds(train.labels, study.asked.folds, np.random.default_rng([spec.seed, len(synthetic.labels)]))
    seeds = judge_seeds(spec.seed, spec.judge.seeds)
    found = np.zeros((len(seeds), len(train.labels), classes))
    for k in np.unique(fold):
        out = fold == k
        kept, left = _taken(train, ~out), _taken(train, out).part().pixels
        for j, seed in enumerate(seeds):
            model, _ = judge_model.train([kept.part(), synthetic.part()], spec.judge, classes, seed, device)
            found[j, out] = judge_model.probabilities(model, left, device)
    if arm == "entropy":
        return entropy_weights(found)
    wrong = (found.argmax(2) != train.labels).mean(0)
    return class_error_weights(wrong, train.labels, classes)


def _taken(images: Arrays, rows: np.ndarray) -> Arrays:
    return Arrays(images.pixels[rows], images.labels[rows], np.arange(int(rows.sum()), dtype=np.int64))


def _images(spec: RunSpec, store: Store) -> Arrays:
    with quiet().task("images", spec.generate.count) as task:
        return synthetic_images(spec, store, spec.generate.count, task)


def _joined(sets: list[Arrays]) -> Arrays:
    pixels, labels = (np.concatenate([getattr(one, name) for one in sets]) for name in ("pixels", "labels"))
    return Arrays(pixels, labels, np.arange(len(labels), dtype=np.int64))


def _scores(study: Study, spec: RunSpec, drawn: Arrays, device: str) -> ArmTrial:
    """What judges read on the images of the split: trained on the drawn images alone, and on real ones too."""
    from engine.training.judge_tuning import tuned

    shared = study.shared
    n, classes = len(drawn.labels), len(shared.catalog.class_names)
    data = Data(shared.train, shared.held, drawn, n, classes, validation=shared.validation)
    found: dict[str, list[Reading]] = {}
    for arm in (Arm(kind, 1) for kind in SETS):
        own = tuned(arm, spec.seed, spec.judge, data, device)
        found[arm.kind] = [read(arm, seed, own, data, device) for seed in judge_seeds(spec.seed, own.seeds)]
    return told(found, len(shared.held.labels))
