"""Trains the judges: the same small CNN on real, synthetic, mixed and control data, one Ray Train run over all arms and
seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec, ResourcesSpec
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.training.judge_data import real_images, synthetic_images
from engine.training.judge_fit import Arm, Data, Outcome, arms, judge_one
from engine.training.setup import place, run

FOLDER = output.JUDGES


def filled(spec: RunSpec, train: int) -> RunSpec:
    """The spec with `judge.multiples` written out for `train` real images: 1, and the largest whole one of
    `generate.count`."""
    if spec.judge.multiples is not None or train < 1:
        return spec
    multiples = tuple(sorted({1, max(1, spec.generate.count // train)}))
    return spec.model_copy(update={"judge": spec.judge.model_copy(update={"multiples": multiples})})


def check(spec: RunSpec, train: int, test: int) -> None:
    """Whether the arms can be made from `train` real and `generate.count` synthetic images; raises ConfigError."""
    if test == 0:
        raise ConfigError(
            "judge", "needs a test split, and no real image is in it", "set split.test or source.test_path"
        )
    largest = max((arm.multiple for arm in arms(filled(spec, train).judge)), default=0)
    if largest * train > spec.generate.count:
        raise ConfigError(
            "judge.multiples",
            f"{largest} x {train:,} training images are {largest * train:,} samples, "
            f"generate.count is {spec.generate.count:,}",
            f"raise generate.count to {largest * train}, or ask for smaller multiples",
        )


def outcome_name(arm: str, seed: int) -> str:
    """Where the result of one judge lies in an output."""
    return f"{FOLDER}/{arm}-{seed}.json"


def outcomes(
    spec: RunSpec,
    catalog: Catalog,
    store: Store,
    progress: Reporter,
    controls: Sequence[Arm] = (),
    prepare: Callable[[Data, set[str]], Data] = lambda data, kinds: data,
) -> list[Outcome]:
    """Train every (arm, seed) that is not on storage yet; returns all of them, arm by arm, `controls` last.

    `prepare(data, kinds)` adds what control arms of these kinds train on. Each result is published on its own as soon
    as it is there, so an interrupted run goes on with the next judge. The test split is read once by each trained
    judge, after its last step; nothing is chosen by it. Call inside a Ray session.
    """
    n = catalog.split("train").num_rows
    check(spec, n, catalog.split("test").num_rows)
    spec = filled(spec, n)
    wanted = (*arms(spec.judge), *controls)
    jobs = [(arm, seed) for arm in wanted for seed in range(spec.judge.seeds)]
    pending = [(arm, seed) for arm, seed in jobs if not store.exists(outcome_name(arm.key, seed))]
    if pending:
        data = images(spec, catalog, store, progress, max(arm.multiple for arm in wanted))
        data = prepare(data, {arm.kind for arm, _ in pending})
        names = [outcome_name(arm.key, seed) for arm, seed in pending]
        readings.note(store, "judge", "judge", [arm.key for arm, _ in pending], names, len(data.test.labels))
        _train_all(spec, data, store, progress, pending)
    return [_read(store, arm.key, seed) for arm, seed in jobs]


def _read(store: Store, arm: str, seed: int) -> Outcome:
    return documents.read(store, outcome_name(arm, seed), Outcome)


def _train_all(spec: RunSpec, data: Data, store: Store, progress: Reporter, jobs: list[tuple[Arm, int]]) -> None:
    """One Ray Train run: the images go to the object store once, the workers share the jobs."""
    import ray

    board = Board.create()
    config: Config = {
        "jobs": jobs,
        "data": ray.put(data),
        "spec": spec.judge,
        "store": store,
        "board": board,
        "generator": spec.seed,
    }
    with follow(board, progress):
        run(loop, config, name="judge", resources=workers(spec.resources, len(jobs)))


def images(spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter, multiple: int) -> Data:
    """The real images, and the first `multiple` times n of the synthetic set."""
    train, held, test = (catalog.split(name) for name in ("train", "validation", "test"))
    n = train.num_rows
    wanted = multiple * n
    with progress.task("judge: images", n + held.num_rows + test.num_rows + wanted) as task:
        validation = real_images(spec, held, task, same_codec=False) if held.num_rows else None
        return Data(
            train=real_images(spec, train, task, same_codec=True),
            test=real_images(spec, test, task, same_codec=False),
            synthetic=synthetic_images(spec, store, wanted, task) if wanted else None,
            n=n,
            classes=len(catalog.class_names),
            validation=validation,
        )


def workers(resources: ResourcesSpec, jobs: int) -> ResourcesSpec:
    """As many workers as jobs can use; on CPUs every core takes part, as the jobs share nothing."""
    from engine.cluster.session import cores_of_cluster, device

    most = resources.train_workers
    if device(resources) == "cpu":
        most = max(most, cores_of_cluster(resources.labels))
    return resources.model_copy(update={"train_workers": max(1, min(most, jobs)), "train_workers_min": None})


class Config(TypedDict):
    """What the workers are sent; `data` is a reference to `Data`, `generator` the generator's seed."""

    jobs: list[tuple[Arm, int]]
    data: Any
    spec: JudgeSpec
    store: Store
    board: Board
    generator: int


def loop(config: Config) -> None:
    """The worker: its share of the (arm, seed) jobs, each trained, tested once and published."""
    import ray
    import torch

    from engine.training import judge_tuning

    here = place()
    torch.set_num_threads(1)  # the same sums in the same order on every machine; also faster at this size
    data: Data = ray.get(config["data"])
    jobs = config["jobs"][here.rank :: here.world_size]
    store, spec, board = config["store"], config["spec"], config["board"]
    name = "judge" if here.world_size == 1 else f"judge: worker {here.rank + 1}"
    for k, (arm, seed) in enumerate(jobs):
        if store.exists(outcome_name(arm.key, seed)):
            continue

        def tick(step: int, loss: float, k: int = k, arm: Arm = arm, seed: int = seed) -> None:
            done, total = k * spec.steps + step, len(jobs) * spec.steps
            board.update(name, done, total, "steps", arm=arm.key, seed=seed, loss=loss)

        tuned = f"{FOLDER}/tuned/{arm.key}.json"
        own = judge_tuning.tuned_once(store, tuned, arm, config["generator"], spec, data, here.device)
        outcome = judge_one(arm, seed, own, data, here.device, tick)
        store.create(outcome_name(arm.key, seed), json.dumps(asdict(outcome), sort_keys=True, allow_nan=False).encode())
