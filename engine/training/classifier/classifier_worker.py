"""What each Ray Train worker runs: its classifiers one after the other, each resumed, trained, validated, tested once,
published."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine import output
from engine.cluster.board import Board
from engine.seeds import derive
from engine.spec.classifier import TrainSpec
from engine.storage.store import Store
from engine.training import setup, training_state
from engine.training.classifier import classifier_models, saved
from engine.training.classifier.classifier_arms import SYNTHETIC, Arm, mixture, parts
from engine.training.classifier.classifier_stage import ClassifierStage
from engine.training.classifier.ingest import Images
from engine.training.classifier.loader import Feed, Loader
from engine.training.classifier.metrics import measure, nll, top_k
from engine.training.classifier.saved import Classifier
from engine.training.loop import Loop
from engine.training.loss_curve import curve
from engine.training.resume import resume
from engine.training.setup import Place
from engine.training.trainingresults import ClassifierFacts

CHECKPOINTS = output.TRAIN_CHECKPOINTS
RESULTS = output.TRAINED
VALIDATION, TEST = "validation", "test"
EVALUATED = 1024


@dataclass(frozen=True)
class Task:
    """One classifier to train: an arm, a seed, its name on storage and what it is made from."""

    arm: Arm
    seed: int
    name: str
    made_from: dict[str, object]

    @property
    def result(self) -> str:
        """Where its result lies."""
        return f"{RESULTS}/{self.name}.json"


@dataclass(frozen=True)
class Job:
    """All classifiers of a run and what they share; `n`: real training images; `deadline`: until when (`time.time()`)
    it may run."""

    spec: TrainSpec
    store: Store
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]
    size: int
    n: int
    deadline: float | None = None
    board: Board | None = None
    compiled: bool = False


class Config(TypedDict):
    """What the workers are sent: the job, and the images by name."""

    job: Job
    sets: Mapping[str, Images]


class Done(TypedDict):
    """Whether every classifier is trained."""

    done: bool


def train(config: Config) -> Done:
    """The loop for `setup.run`."""
    job, sets, place = config["job"], config["sets"], setup.place()
    tasks = job.tasks
    if job.spec.spread == "jobs":
        tasks, place = tasks[place.rank :: place.world_size], replace(place, rank=0, world_size=1)
    for task in tasks:
        if not job.store.exists(task.result) and not Training(job, task, sets, place).run():
            return {"done": False}
    return {"done": True}


class Training:
    """One classifier; every worker that takes part in it makes one."""

    def __init__(self, job: Job, task: Task, sets: Mapping[str, Images], place: Place) -> None:
        self.job, self.task, self.place, self.sets = job, task, place, sets
        spec, classes = job.spec, len(job.class_names)
        labels = {name: images.labels for name, images in sets.items()}
        index = sets[SYNTHETIC].index if SYNTHETIC in sets else np.empty(0, np.int64)
        self.parts = parts(task.arm, task.seed, labels, index, job.n)
        seed = derive(task.seed, "train")
        plan = mixture(spec, self.parts, labels, seed)
        feed = Feed.of(spec, job.size, seed, sets, self.parts, plan)
        self.loader = Loader(feed, place.part(spec.batch), loaders=spec.loaders)
        torch.manual_seed(derive(task.seed, "weights"))
        model = classifier_models.build(spec, job.size, classes).to(place.device).to(memory_format=torch.channels_last)
        if spec.sync_batch_norm and place.world_size > 1 and place.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.stage = ClassifierStage(task.name, spec, seed, job.n, classes, model, self.loader, place)
        self.classifier = Classifier(model, job.class_names, job.size, spec.crop_pct, place.device, {})
        self._validates = VALIDATION in sets and len(sets[VALIDATION]) > 0

    def run(self) -> bool:
        """Train what is left, test, publish from rank 0; False when the time was up."""
        prefix = f"{CHECKPOINTS}/{self.task.name}"
        resumed = resume(self.job.store, prefix, self.task.made_from, self.place)
        loop = Loop(self.stage, self.place, None if resumed is None else resumed["loop"], compiled=self.job.compiled)
        checks = set(self.stage.validations) if self._validates else set()
        try:
            done = loop.run(
                checkpoint_every=self.job.spec.checkpoint_every,
                save=lambda: self._save(loop, prefix),
                out_of_time=lambda: self.job.deadline is not None and time.time() >= self.job.deadline,
                tell=self._tell,
                look=lambda step: step in checks,
            )
        finally:
            self.loader.close()
        if done and self.place.rank == 0:
            self._publish(loop)
            training_state.remove_all(self.job.store, prefix)
        return done

    def _save(self, loop: Loop, prefix: str) -> None:
        if self.place.rank == 0:
            state = {"made_from": self.task.made_from, "loop": loop.state()}
            training_state.save(self.job.store, prefix, loop.step, state)

    def _tell(self, step: int, loss: float) -> None:
        if self.place.rank != 0:
            return
        if self.job.board:
            self.job.board.update(self.task.name, step, self.stage.steps, "steps", loss=loss)
        if self._validates and step in self.stage.validations:
            self._validate(step)

    def _validate(self, step: int) -> None:
        """Look at the validation split with the weights that would be kept; save them where they are the best so
        far."""
        with self._averaged():
            found = self._probabilities(VALIDATION)
            labels = self.sets[VALIDATION].labels
            accuracy, likelihood = top_k(found, labels, 1), nll(found, labels)
            self.stage.kept["curve"][self.stage.validations.index(step)] = torch.tensor([step, accuracy, likelihood])
            best = self.stage.kept["best"].tolist()
            if not best[3] or (accuracy, -likelihood) > (best[1], -best[2]):
                self.stage.kept["best"].copy_(torch.tensor([step, accuracy, likelihood, 1.0]))
                saved.save(self.job.store, self.task.name, "best", self.stage.module, self._facts(None))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside the block the module has its averaged weights, where it keeps an average; buffers are the newest."""
        ema = self.stage.ema
        if ema is None:
            yield
            return
        trained = [p for p in self.stage.module.parameters() if p.requires_grad]
        own = [parameter.detach().clone() for parameter in trained]
        ema.copy_to(trained)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(trained, own, strict=True):
                    parameter.copy_(value)

    def _probabilities(self, name: str) -> NDArray[np.float32]:
        images, out = self.sets[name], []
        with ThreadPoolExecutor(4) as pool:
            for first in range(0, len(images), EVALUATED):
                rows = np.arange(first, min(first + EVALUATED, len(images)), dtype=np.int64)
                out.append(self.classifier.probabilities(images.take(rows, pool)))
        return np.concatenate(out)

    @property
    def _selected(self) -> str:
        return (self.job.spec.select or "best") if self._validates else "last"

    def _facts(self, selected: str | None) -> ClassifierFacts:
        job, task = self.job, self.task
        return {
            "arm": task.arm.key,
            "seed": task.seed,
            "train": job.spec.model_dump(mode="json"),
            "class_names": list(job.class_names),
            "size": job.size,
            "made_from": task.made_from,
            "selected": selected,
        }

    def _publish(self, loop: Loop) -> None:
        """The last weights, then the one reading of the test split, then the result, which ends the task."""
        job, task, stage = self.job, self.task, self.stage
        with self._averaged():
            saved.save(job.store, task.name, "last", stage.module, self._facts(self._selected))
        chosen = saved.load(job.store, task.name, self._selected, self.place.device)
        self.classifier = replace(self.classifier, model=chosen.model)
        best = stage.kept["best"].tolist()
        counts = {part.of: len(np.unique(part.rows)) for part in self.parts}
        facts = self._facts(self._selected)
        result = {
            "arm": facts["arm"],
            "seed": facts["seed"],
            "made_from": facts["made_from"],
            "selected": facts["selected"],
            "classifier": task.name,
            "kind": task.arm.kind,
            "images": counts,
            "drawn": [len(part.rows) for part in self.parts],
            "steps": stage.steps,
            "parameters": sum(p.numel() for p in stage.module.parameters()),
            "curve": curve(loop.losses, loop.seconds),
            "validation": {
                "curve": stage.kept["curve"].tolist(),
                "best": {"step": int(best[0]), "top1": best[1], "nll": best[2]},
            }
            if self._validates
            else None,
            "test": measure(self._probabilities(TEST), self.sets[TEST].labels),
            "device": str(self.place.device),
        }
        job.store.create(task.result, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode())
