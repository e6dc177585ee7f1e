"""One trial of an equivalence study: a generator trained on one base, its images, and the classifiers on all amounts of
them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.cluster.board import Board
from engine.images.catalog import Catalog, restrict
from engine.spec import RunSpec
from engine.study.equivalence.equivalence_plan import Cell, cell_spec, judge_seeds, multiples, order, section, sizes
from engine.study.trial import Shared, quiet, synthetic_set, train_generator
from engine.training.judge_data import Arrays, synthetic_images
from engine.training.judge_fit import Arm, Data, judge_one

Accuracies = dict[str, list[float]]


@dataclass(frozen=True)
class Study:
    """What all cells have in common: the recipe, the output, the catalog, and what classifiers see of the real images.

    `pool` are all training images, in the catalog's order; `test` those that every classifier is read on once.
    """

    spec: RunSpec
    url: str
    catalog: Catalog
    pool: Arrays
    test: Arrays

    def order(self, repeat: int) -> np.ndarray:
        """The rows of the pool in the order in which a repeat takes them."""
        return order(self.pool.labels, self.spec.seed + repeat)

    def take(self, rows: np.ndarray) -> Arrays:
        """Images of the pool, numbered from 0."""
        return Arrays(self.pool.pixels[rows], self.pool.labels[rows], np.arange(len(rows), dtype=np.int64))


def run(study: Study, cell: Cell, device: str, board: Board | None = None) -> dict[str, Accuracies]:
    """The result of a cell."""
    return {"accuracies": run_cell(study, cell, device, board)}


def settings(spec: RunSpec, cell: Cell) -> dict[str, object]:
    """What decides a cell's accuracies besides the images: results of other settings are refused."""
    from engine.spec import identity

    asked = section(spec)
    common: dict[str, object] = {
        "judge": spec.judge.model_dump(mode="json"),
        "judge_seeds": asked.judge_seeds,
        "seed": spec.seed,
        "nested": True,
    }
    if not cell.base:
        return common | {"real": list(asked.real)}
    made = identity(cell_spec(spec, cell)) if asked.synthetic == "generator" else None
    return common | {"synthetic": asked.synthetic, "multiples": list(multiples(spec)), "recipe": made}


def run_cell(study: Study, cell: Cell, device: str, board: Board | None = None) -> Accuracies:
    """Accuracies by size of the real set (base 0) or by multiple of the base, a judge seed each."""
    spec, rows = study.spec, study.order(cell.repeat)
    if not cell.base:
        jobs = [(n, Arm("real"), _data(study, rows[:n], None)) for n in sizes(spec, len(rows))]
    else:
        synthetic = _synthetic(study, cell, rows, device)
        data = _data(study, rows[: cell.base], synthetic)
        jobs = [(m, Arm("mixed", m), data) for m in multiples(spec)]
    judge = spec.judge.model_copy(update={"mixing": "proportional"})  # the union: what further real images would make
    seeds = judge_seeds(spec, cell.repeat)
    out: Accuracies = {}
    done = 0
    for key, arm, data in jobs:
        out[str(key)] = []
        for seed in seeds:
            out[str(key)].append(judge_one(arm, seed, judge, data, device).accuracy)
            done += 1
            if board is not None:
                board.update(f"equivalence {cell.key}", done, len(jobs) * len(seeds), "classifiers")
    return out


def _data(study: Study, rows: np.ndarray, synthetic: Arrays | None) -> Data:
    return Data(study.take(rows), study.test, synthetic, len(rows), len(study.catalog.class_names))


def _synthetic(study: Study, cell: Cell, rows: np.ndarray, device: str) -> Arrays:
    """What stands for synthetic images: the generator's, or a plant of known worth."""
    wanted = section(study.spec).synthetic
    if wanted == "generator":
        return _generated(study, cell, rows, device)
    further = study.take(rows[cell.base : cell.base * (1 + max(multiples(study.spec)))])
    if wanted == "real":
        return further
    rng = np.random.default_rng([study.spec.seed + cell.repeat, cell.base])
    labels = rng.integers(len(study.catalog.class_names), size=len(further.labels), dtype=np.int64)
    return Arrays(further.pixels, labels, further.index)


def _generated(study: Study, cell: Cell, rows: np.ndarray, device: str) -> Arrays:
    spec = cell_spec(study.spec, cell)
    training = study.catalog.split("train")
    held = restrict(study.catalog, training.take(rows[: cell.base])["key"].to_pylist())
    base = study.take(rows[: cell.base])
    shared = Shared(study.url, held, base, study.test)
    name = f"base-{cell.base}"
    generator = train_generator(spec, shared, device, f"{name}-generator")
    store = synthetic_set(spec, name, generator, shared, device)
    with quiet().task("images", spec.generate.count) as task:
        return synthetic_images(spec, store, spec.generate.count, task)
