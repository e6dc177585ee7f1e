"""One trial of a ratio search: the generator, images and fine-tune that it shares, and its classifiers on all they
see."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from engine import output
from engine.cluster.board import Board
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.statistics.nested import judge_seed
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from engine.study.judge_reading import read
from engine.study.search.search_plan import Point, Seeds, Work, largest, name_of, outcome, set_spec
from engine.study.trial import Shared, fine_tuned, quiet, synthetic_set, train_generator, trial_store
from engine.training.judge_data import Arrays, synthetic_images
from engine.training.judge_fit import Arm, Data
from engine.training.matching.matching_precheck import MARKER


@dataclass(frozen=True)
class Study:
    """What all trials have in common: the recipe, the output, the catalog, the real training images, and what to score
    on.

    `held` are the validation images while settings are compared; `catalog` then names no test image. `generators`: the
    generator seeds by their numbers; `folder`: where accuracies go.
    """

    spec: RunSpec
    url: str
    catalog: Catalog
    train: Arrays
    held: Arrays
    folder: str
    generators: tuple[int, ...]
    validation: Arrays | None = None

    @property
    def n(self) -> int:
        """Real training images."""
        return len(self.train.labels)


def score(study: Study, work: Work, seeds: Seeds, device: str, board: Board | None = None) -> None:
    """Train the classifiers that have no accuracy yet, and publish each one's as soon as it is known."""
    from engine.training.judge_tuning import tuned_once

    store, point = open_store(study.url), work.point
    data: tuple[int, Data] | None = None
    for done, seed in enumerate(seeds):
        name, generator = outcome(study.folder, point, seed), seed[0]
        if store.exists(name):
            continue
        if data is None or data[0] != generator:
            data = generator, _data(study, point, generator, device)
        arm = Arm("mixed", math.ceil(point.ratio)) if point.ratio else Arm("real")
        own = study.generators[generator]
        tuned = f"{study.folder}/{point.key}/tuned/{seed[0]}.json"
        judge = tuned_once(store, tuned, arm, own, study.spec.judge, data[1], device)
        found = read(arm, judge_seed(own, seed[1]), judge, data[1], device)
        facts = {"ratio": point.ratio, "values": point.changes(), **found.to_json()}
        store.create(name, json.dumps(facts, sort_keys=True, allow_nan=False).encode())
        if board is not None:
            board.update(f"search {work.key}", done + 1, len(seeds), "classifiers")


def _data(study: Study, point: Point, generator: int, device: str) -> Data:
    synthetic = _synthetic(study, point, generator, device) if point.ratio else None
    classes = len(study.catalog.class_names)
    return Data(study.train, study.held, synthetic, study.n, classes, validation=study.validation)


def _synthetic(study: Study, point: Point, generator: int, device: str) -> Arrays:
    """The first samples of the set of this generator seed and these values; whoever comes first makes it, others
    wait."""
    needed = max(largest(study.spec, study.n), point.count(study.n))
    own = study.generators[generator]
    spec = set_spec(study.spec, point, own, needed)
    shared = Shared(study.url, study.catalog, study.train, study.held)
    name = f"search-{name_of(point.values)}-{spec.generate.count}"
    model = train_generator(spec, shared, device, "search-generator")
    if spec.match is not None:
        tuned = fine_tuned(set_spec(study.spec, Point(0.0), own, 1), "search-tuned", model, shared, device)
        _begin(trial_store(shared, f"seed-{spec.seed}/{name}"), spec, tuned)
    store = synthetic_set(spec, name, model, shared, device)
    count = point.count(study.n)
    with quiet().task("images", count) as task:
        return synthetic_images(spec, store, count, task)


def _begin(target: Store, spec: RunSpec, source: Store) -> None:
    """Hand on a fine-tune, which depends on nothing that a search changes; the file that says it is whole comes last.

    The recipe comes first: killed in between, the output is known for one of mimeo's.
    """
    claim(target, spec)
    for entry in sorted(source.list(output.MATCH), key=lambda entry: entry.name == MARKER):
        if not target.exists(entry.name):
            target.create(entry.name, source.read(entry.name))
