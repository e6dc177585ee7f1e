"""Trains the classifiers of a recipe: images into the object store once, one Ray Train run over all arms and seeds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, digest, plain
from engine.spec.classifier import NOT_INPUTS, TrainSpec
from engine.spec.recipe import ResourcesSpec
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.training import setup
from engine.training.classifier import classifier_arms as arms_of
from engine.training.classifier import classifier_models, classifier_worker, ingest
from engine.training.classifier import training_sets as sources
from engine.training.classifier.classifier_arms import REAL, RECONSTRUCTED, SYNTHETIC
from engine.training.classifier.classifier_worker import TEST, VALIDATION, Job, Task
from engine.training.judge_data import codec
from engine.training.trainingresults import ClassifierResult

VERSION = 1  # raised when the same inputs would give another classifier
ONLY_OTHERS = ("replacement", "reconstructed")


@dataclass(frozen=True)
class Plan:
    """What a recipe's `train` section comes to on finished data: its tasks, and what they draw from."""

    spec: RunSpec
    train: TrainSpec
    catalog: Catalog
    sources: tuple[sources.Source, ...]
    tasks: tuple[Task, ...]
    autoencoder: str | None

    def pending(self, store: Store) -> tuple[Task, ...]:
        """The tasks without a result."""
        return tuple(task for task in self.tasks if not store.exists(task.result))


def section(spec: RunSpec) -> TrainSpec:
    """The recipe's `train` section; ConfigError without one."""
    if spec.train is None:
        raise ConfigError(spec.name, "has no train section", "add one, such as --set train.steps=1000")
    return spec.train


def plan(spec: RunSpec, store: Store, catalog: Catalog, *, autoencoder: tuple[Path | str, str] | None = None) -> Plan:
    """Check the arms against what there is and name their classifiers; needs the catalog, and the sealed set where one
    is drawn.

    `autoencoder`: the generator's diffusers directory (path or URL) and its digest, for the arm `reconstructed`. Raises
    ConfigError and DataError.
    """
    train, found = section(spec), check(spec, catalog)
    if train.needs_synthetic:
        found = [sources.own(spec, store), *found]
    common = _common(spec, train, catalog)
    made = []
    for arm in arms_of.arms(train):
        drawn = [source.digest for source in found] if arm.needs_synthetic else []
        model = autoencoder[1] if autoencoder and arm.kind == "reconstructed" else None
        for seed in range(train.seeds):
            inputs = common | {"arm": arm.key, "seed": seed, "synthetic": drawn, "autoencoder": model}
            made.append(Task(arm, seed, f"{arm.key}-{seed}-{digest(inputs)[:8]}", inputs))
    return Plan(spec, train, catalog, tuple(found), tuple(made), str(autoencoder[0]) if autoencoder else None)


def check(spec: RunSpec, catalog: Catalog) -> list[sources.Source]:
    """Refuse arms that these real images, this plan and the further outputs cannot give, before anything is drawn;
    gives the latter."""
    train, labels = section(spec), catalog.split("train")["label"].to_numpy()
    found = sources.further(train, catalog) if train.needs_synthetic else []
    sizes = np.bincount(labels, minlength=len(catalog.class_names))
    validation, test = (catalog.split(name).num_rows for name in (VALIDATION, TEST))
    planned = spec.generate.count + sum(source.planned for source in found)
    arms_of.check(train, sizes, planned, validation, test, spec.resources.train_workers)
    if train.weights is not None:
        classifier_models.check(train, train.size or spec.images.size, len(sizes))
    return found


def _common(spec: RunSpec, train: TrainSpec, catalog: Catalog) -> dict[str, object]:
    settings = {k: v for k, v in train.model_dump(mode="json").items() if k not in NOT_INPUTS}
    if train.weights is not None:
        settings["weights"] = hashlib.sha256(Path(train.weights).read_bytes()).hexdigest()
    return {
        "version": VERSION,
        "catalog": catalog.digest,
        "images": plain(spec)["images"],
        "codec": codec(spec),
        "train": settings,
    }


def train(planned: Plan, store: Store, progress: Reporter, *, time_limit: float | None = None) -> bool:
    """Train every classifier that is not there yet; False where `time_limit` (seconds) ended it early.

    Each result is published on its own as `results/train/NAME.json`; an interrupted classifier goes on from its newest
    checkpoint. The test split is read once by each, after its last step. Call inside a Ray session.
    """
    pending = planned.pending(store)
    if not pending:
        return True
    deadline = None if time_limit is None else time.time() + time_limit
    sets = read_sets(planned, pending, progress)
    board = Board.create()
    spec = planned.spec
    arms, names = [task.arm.key for task in pending], [task.result for task in pending]
    readings.note(store, "train", "train", arms, names, planned.catalog.split(TEST).num_rows)
    job = Job(
        spec=planned.train,
        store=store,
        tasks=pending,
        class_names=planned.catalog.class_names,
        size=planned.train.size or spec.images.size,
        n=planned.catalog.split("train").num_rows,
        deadline=deadline,
        board=board,
        compiled=spec.resources.compile_training,
    )
    with follow(board, progress):
        resources = _resources(spec.resources, planned.train, len(pending))
        config: classifier_worker.Config = {"job": job, "sets": sets}
        out = setup.run(classifier_worker.train, config, name="classifiers", resources=resources)
    return bool(out["done"]) and not planned.pending(store)


def read_sets(planned: Plan, tasks: Sequence[Task], progress: Reporter) -> dict[str, ingest.Images]:
    """The images that some tasks need, by set, in one Ray Data job."""
    spec, catalog = planned.spec, planned.catalog
    rows, n = catalog.split("train"), catalog.split("train").num_rows
    asked = [ingest.real(name, spec, catalog.split(name), same_codec=False) for name in (VALIDATION, TEST)]
    if any(task.arm.kind not in ONLY_OTHERS for task in tasks):
        asked.append(ingest.real(REAL, spec, rows, same_codec=True))
    if any(task.arm.kind == "reconstructed" for task in tasks):
        asked.append(ingest.real(RECONSTRUCTED, spec, rows, same_codec=True, autoencoder=planned.autoencoder))
    most = max((task.arm.multiple for task in tasks if task.arm.needs_synthetic), default=0) * n
    if most:
        asked += sources.requests(SYNTHETIC, planned.sources, most, catalog.class_names)
    return ingest.ingest(spec, asked, progress)


def _resources(resources: ResourcesSpec, train: TrainSpec, jobs: int) -> ResourcesSpec:
    """A fixed number of workers; as many as there are classifiers where each trains its own."""
    most = min(resources.train_workers, jobs) if train.spread == "jobs" else resources.train_workers
    return resources.model_copy(update={"train_workers": most, "train_workers_min": None})


def results(planned: Plan, store: Store) -> list[ClassifierResult]:
    """What is published of a plan's tasks, in their order."""
    return [documents.read(store, task.result, ClassifierResult) for task in planned.tasks if store.exists(task.result)]
