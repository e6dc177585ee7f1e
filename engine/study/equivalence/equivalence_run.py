"""`mimeo equivalence`: every cell a trial of Ray Tune; what they publish is fitted, with intervals over the repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypedDict

from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, identity
from engine.spec.recipe import ResourcesSpec
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.study import tuning
from engine.study.equivalence.cell import Config, Study, loop, settings
from engine.study.equivalence.equivalence_plan import Cell, cells, check_sizes, section
from engine.study.publishedresults import EquivalenceStudy
from engine.study.studyresults import EquivalenceCell

RESULT = "results/equivalence.json"


def equivalence(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> EquivalenceStudy:
    """Measure what is missing, fit, and write and return results/equivalence.json. Call it inside a Ray session."""
    from engine.study.equivalence.equivalence_advice import advice
    from engine.study.equivalence.result import Analysis, Measured

    asked = section(spec)
    cells_by_key = measure(spec, catalog, store, reporter)
    analysis = Analysis(Measured.of(cells_by_key, asked.generator_seeds), asked.resamples, spec.seed)
    found = analysis.to_json()
    result: EquivalenceStudy = {
        "name": spec.name,
        "generator": "closed-set" if spec.model.checkpoint is None else "open-set",
        "synthetic": asked.synthetic,
        "classes": len(catalog.class_names),
        "test_images": catalog.split("test").num_rows,
        **found,
        "cells": cells_by_key,
        "recipe": identity(spec),
        "advice": advice(found),
    }
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def measure(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> dict[str, dict[str, list[float]]]:
    """Run every cell that has no accuracies yet; returns those of all cells by `Cell.key`. Call it inside a Ray
    session.

    A study that was cut short goes on with the cells that are missing, and one with more repeats adds them.
    """
    if not catalog.split("test").num_rows:
        raise ConfigError("split.test", "an equivalence study needs a test split", "set it, or source.test_path")
    check_sizes(spec, catalog.split("train")["label"].to_numpy())
    plan = cells(spec)
    for cell in plan:
        _check_settings(spec, store, cell)
    pending = [cell for cell in plan if not store.exists(cell.name)]
    if pending:
        count = range(section(spec).judge_seeds)
        names = [f"{cell.name}-{number}" for cell in pending for number in count]
        arms = ["real" if not cell.base else f"base {cell.base}" for cell in pending]
        readings.note(store, "equivalence", "every cell", arms, names, catalog.split("test").num_rows)
        _run(spec, catalog, store, reporter, pending)
    return {cell.key: documents.read(store, cell.name, EquivalenceCell)["accuracies"] for cell in plan}


def _run(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, pending: list[Cell]) -> None:
    import ray

    from engine.training.judge_data import real_images

    with reporter.task("equivalence: real images", catalog.table.num_rows) as task:
        train, test = catalog.split("train"), catalog.split("test")
        images = real_images(spec, train, task, same_codec=True), real_images(spec, test, task, same_codec=False)
    study, board = ray.put(Study(spec, store.url, catalog, *images)), Board.create()
    by_key = {cell.key: cell for cell in pending}
    resources = tuning.one_worker(spec.resources)
    parameters: Parameters = {"study": [study], "board": board, "cells": by_key, "resources": resources}
    with follow(board, reporter):
        tuning.every(trial, "cell", list(by_key), parameters, reporter, "equivalence")


class Parameters(TypedDict):
    """What all trials are given; `study` holds a reference to a `Study`, `cells` are by their keys."""

    study: list[Any]
    board: Board
    cells: dict[str, Cell]
    resources: ResourcesSpec


def trial(config: Mapping[str, Any], report: tuning.Report, parameters: Parameters) -> None:
    """The driver function of one cell: a Ray Train run of one worker."""
    from engine.training import setup

    cell = parameters["cells"][config["cell"]]
    given: Config = {"study": parameters["study"][0], "cell": cell, "board": parameters["board"]}
    setup.run(loop, given, name=f"equivalence-{cell.key}", resources=parameters["resources"])
    report(1.0)


def _check_settings(spec: RunSpec, store: Store, cell: Cell) -> None:
    """Refuse what was measured with other settings, and a real curve that lacks a base."""
    known = documents.find(store, cell.name, EquivalenceCell)
    if known is None:
        return
    lacking = [base for base in section(spec).bases if not cell.base and str(base) not in known["accuracies"]]
    if known["settings"] != settings(spec, cell) or lacking:
        how = f"without the size {lacking[0]}" if lacking else "with other settings"
        what = f"cell {cell.key} was measured {how} in {store.url}"
        raise ConfigError("equivalence", what, "use another output")
