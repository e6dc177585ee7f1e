"""`mimeo equivalence`: every cell a trial of Ray Tune; what they publish is fitted, with intervals over the repeats."""

from __future__ import annotations

import json

from engine import output
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, identity
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.study import trials
from engine.study.equivalence import cell
from engine.study.equivalence.cell import settings
from engine.study.equivalence.equivalence_plan import Cell, cells, check_sizes, section
from engine.study.publishedresults import EquivalenceStudy
from engine.study.studyresults import EquivalenceCell
from engine.study.trials import Trial
from engine.training.judge_data import real_images

RESULT = output.EQUIVALENCE


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
    plan = [Trial(f"cell {one.key}", one.name, settings(spec, one), one) for one in cells(spec)]
    for trial in plan:
        _check_sizes_measured(spec, store, trial.work)
    pending = trials.missing(store, plan, "equivalence")
    if pending:
        count = range(section(spec).judge_seeds)
        names = [f"{trial.name}-{number}" for trial in pending for number in count]
        arms = [f"base {trial.work.base}" if trial.work.base else "real" for trial in pending]
        readings.note(store, "equivalence", "every cell", arms, names, catalog.split("test").num_rows)
        with reporter.task("equivalence: real images", catalog.table.num_rows) as task:
            train, test = catalog.split("train"), catalog.split("test")
            images = real_images(spec, train, task, same_codec=True), real_images(spec, test, task, same_codec=False)
        study = cell.Study(spec, store.url, catalog, *images)
        trials.run(cell.run, study, pending, store, spec.resources, reporter, "equivalence")
    return {trial.work.key: documents.read(store, trial.name, EquivalenceCell)["accuracies"] for trial in plan}


def _check_sizes_measured(spec: RunSpec, store: Store, cell: Cell) -> None:
    """Refuse a real curve that lacks a base."""
    known = documents.find(store, cell.name, EquivalenceCell)
    lacking = [base for base in section(spec).bases if known and not cell.base and str(base) not in known["accuracies"]]
    if lacking:
        what = f"cell {cell.key} was measured without the size {lacking[0]} in {store.url}"
        raise ConfigError("equivalence", what, "use another output")
