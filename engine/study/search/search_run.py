"""`mimeo search`: settings as trials of Ray Tune, judged on validation images; the best one's test accuracy is read
once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.images.catalog import Catalog, withheld
from engine.spec import RunSpec, identity
from engine.statistics.nested import generator_seeds
from engine.statistics.population import Floats
from engine.storage import documents
from engine.storage.store import Store
from engine.study import tuning
from engine.study.judge_reading import TEST, VALIDATION, need_validation, note_test, scored, shares
from engine.study.search import rungs, search_plan, search_summary
from engine.study.search.search_plan import Point, Work
from engine.study.search.search_summary import ZERO
from engine.study.search.search_trial import Study, score
from engine.study.search.suggest import searcher
from engine.study.studyresults import (
    PublishedReading,
    SearchChoice,
    SearchOutcome,
    SearchPoint,
    SearchResult,
    TestReading,
)
from engine.training.judge_data import real_images

CHOICE = output.SEARCH_CHOICE
FINAL = output.SEARCH_TEST


def search(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> SearchResult:
    """Run every trial that has no result yet, choose, read the test split once; writes and returns results/search.json.

    Call it inside a Ray session. Each classifier's accuracy is published on its own, so a search that was cut short
    goes on, and one with more ratios, values or seeds adds them. Once the test split was read for a choice it is never
    read for another.
    """
    n, images = catalog.split("train").num_rows, catalog.split(VALIDATION).num_rows
    need_validation(images, "a search")
    search_plan.check_ratios(spec, n)
    session = _Session(spec, catalog, store, reporter)
    points = _search(session)
    values = {point: _accuracies(spec, store, search_plan.TRIALS, point) for point in points}
    asked = search_plan.section(spec)
    whole = len(search_plan.seeds(spec))
    right = {p: _right(spec, store, search_plan.TRIALS, p, images) for p in points if len(values[p]) == whole}
    found = search_summary.curve(values, whole, n, right, asked.effect)
    best = search_summary.choose(found)
    result: SearchResult = {
        "name": spec.name,
        "training_images": n,
        "validation_images": images,
        "generator_seeds": asked.generator_seeds,
        "judge_seeds": asked.judge_seeds,
        "method": asked.method,
        "points": found,
        "chosen": best["key"],
        "beats_zero": best["gain"] is not None and best["gain"]["finding"] == "higher",
        "one_standard_error": search_summary.plainer(found, best)["key"],
        "test": _test(session, best) if catalog.split(TEST).num_rows else None,
        "covers": search_summary.covers(asked.generator_seeds, asked.judge_seeds, images),
        "asked": asked.model_dump(mode="json"),
        "recipe": identity(spec),
    }
    store.replace(search_plan.RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _search(session: _Session) -> list[Point]:
    """Run what is missing; returns the settings that have accuracies, ratio 0 first."""
    spec, store = session.spec, session.store
    asked, points = search_plan.section(spec), search_plan.tried(spec)
    grid = points if asked.method == "grid" else []
    works = [Work(point, (seeds,)) for point in (ZERO, *grid) for seeds in search_plan.by_generator(spec)]
    session.run(VALIDATION, search_plan.TRIALS, works)
    if asked.method == "asha":
        _asha(session, points)
    elif asked.method == "optuna":
        points = _optuna(session)
    return [ZERO, *(point for point in points if _accuracies(spec, store, search_plan.TRIALS, point))]


def _asha(session: _Session, points: Sequence[Point]) -> None:
    """Settings whose mean is in the lower half at a rung are stopped there, and stay so."""
    spec, store = session.spec, session.store
    seeds = search_plan.seeds(spec)
    works = [Work(point, rungs.stretches(seeds)) for point in points]
    ended = [work for work in works if _whole(spec, store, work.point) or store.exists(search_plan.stopped(work.point))]
    known = {point.key: _means(spec, store, point) for point in [ZERO, *(work.point for work in ended)]}

    def note(config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        point = next(work.point for work in works if work.key == config["trial"])
        if result.get(tuning.FAULT) is None and not _whole(spec, store, point):
            accuracies = list(_accuracies(spec, store, search_plan.TRIALS, point).values())
            store.create(search_plan.stopped(point), json.dumps({"accuracies": accuracies}).encode())

    left = [work for work in works if work not in ended]
    session.run(VALIDATION, search_plan.TRIALS, left, scheduler=rungs.scheduler(known, len(seeds)), ended=note)


def _optuna(session: _Session) -> list[Point]:
    """Each next setting follows from the scores of those before; finished ones are handed to Optuna. Returns all
    finished."""
    spec, store, space = session.spec, session.store, search_plan.space(session.spec)
    points = space.points()

    def finished() -> list[tuple[Point, float]]:
        return [(p, _means(spec, store, p)[-1]) for p in points if _whole(spec, store, p)]

    known = finished()
    left = min(search_plan.section(spec).trials or len(points), len(points)) - len(known)
    if left > 0:
        chosen = searcher(space, known, spec.seed, tuning.SCORE)
        session.suggest(space, search_plan.by_generator(spec), chosen, left)
    return [point for point, _ in finished()]


def _test(session: _Session, best: SearchPoint) -> PublishedReading:
    """Write the choice down, then read the test split for it and for ratio 0, with generators and judges of other
    seeds.

    An earlier choice's reading is the only one.
    """
    spec, store = session.spec, session.store
    store.create(CHOICE, json.dumps({"ratio": best["ratio"], "values": best["values"]}, sort_keys=True).encode())
    written = documents.read(store, CHOICE, SearchChoice)
    choice = Point(written["ratio"], tuple(sorted(written["values"].items())))
    if not store.exists(FINAL):
        points = list(dict.fromkeys((ZERO, choice)))
        images = session.catalog.split(TEST).num_rows
        names = [
            search_plan.outcome(search_plan.TESTS, point, seed) for point in points for seed in search_plan.seeds(spec)
        ]
        note_test(store, "search", [point.key for point in points], names, images)
        session.run(TEST, search_plan.TESTS, [Work(point, (search_plan.seeds(spec),)) for point in points])
        values = {point: _accuracies(spec, store, search_plan.TESTS, point) for point in points}
        right = {point: _right(spec, store, search_plan.TESTS, point, images) for point in points}
        read = search_summary.reading(choice, values, images, right, search_plan.section(spec).effect)
        store.create(FINAL, json.dumps(read, indent=1, allow_nan=False).encode())
    return {**documents.read(store, FINAL, TestReading), "of_this_choice": choice.key == best["key"]}


def _accuracies(spec: RunSpec, store: Store, folder: str, point: Point) -> dict[tuple[int, int], float]:
    """Published accuracies, in the order of the seeds, up to the first that is missing."""
    found = {}
    for seed in search_plan.seeds(spec):
        name = search_plan.outcome(folder, point, seed)
        if not store.exists(name):
            break
        found[seed] = documents.read(store, name, SearchOutcome)["accuracy"]
    return found


def _right(spec: RunSpec, store: Store, folder: str, point: Point, images: int) -> Floats:
    """(G, N) share of each generator seed's classifiers that have each image right."""

    def texts(own: Sequence[tuple[int, int]]) -> list[str]:
        return [documents.read(store, search_plan.outcome(folder, point, seed), SearchOutcome)["right"] for seed in own]

    return np.stack([shares(texts(own), images) for own in search_plan.by_generator(spec)])


def _whole(spec: RunSpec, store: Store, point: Point) -> bool:
    return all(store.exists(search_plan.outcome(search_plan.TRIALS, point, seed)) for seed in search_plan.seeds(spec))


def _means(spec: RunSpec, store: Store, point: Point) -> list[float]:
    """Running means of a setting's accuracies."""
    values = np.array(list(_accuracies(spec, store, search_plan.TRIALS, point).values()))
    return (np.cumsum(values) / np.arange(1, len(values) + 1)).tolist()


class Parameters(TypedDict):
    """What all trials are given: named pieces of work, or the space that a searcher draws from; `study` holds a
    reference to a `Study`."""

    works: NotRequired[dict[str, Work]]
    space: NotRequired[search_plan.Space]
    stretches: NotRequired[tuple[search_plan.Seeds, ...]]
    study: NotRequired[list[Any]]
    board: NotRequired[Board]


@dataclass(frozen=True)
class _Session:
    """Runs trials on Ray Tune; `split` names the images that their classifiers are scored on."""

    spec: RunSpec
    catalog: Catalog
    store: Store
    reporter: Reporter

    def run(self, split: str, folder: str, works: Sequence[Work], **options: Any) -> None:
        """One trial for each piece of work that is not done."""
        left = {work.key: work for work in works if not self._done(folder, work)}
        if left:
            from ray import tune

            parameters: Parameters = {"works": left}
            self._tune(split, folder, {"trial": tune.grid_search(list(left))}, parameters, len(left), **options)

    def suggest(
        self, space: search_plan.Space, stretches: Sequence[search_plan.Seeds], chosen: Any, count: int
    ) -> None:
        """`count` trials that the searcher suggests, each with all its seeds."""
        parameters: Parameters = {"space": space, "stretches": tuple(stretches)}
        self._tune(VALIDATION, search_plan.TRIALS, {}, parameters, count, searcher=chosen, samples=count)

    def _done(self, folder: str, work: Work) -> bool:
        return all(self.store.exists(search_plan.outcome(folder, work.point, seed)) for seed in work.seeds)

    def _tune(
        self, split: str, folder: str, space: Mapping[str, Any], parameters: Parameters, count: int, **options: Any
    ) -> None:
        with self._study(split, folder) as (study, board):
            done, resources = 0, self.spec.resources
            parameters |= {"study": [study], "board": board}
            with self.reporter.task(f"search: {split}", count, "trials") as task:
                task.update(0)

                def tell() -> None:
                    nonlocal done
                    done += 1
                    task.update(done)

                ended = tuning.run(trial, space, parameters, resources=resources, tell=tell, **options)
        self._raise_first([one for one in ended if one.error is not None], len(ended), parameters)

    @contextmanager
    def _study(self, split: str, folder: str) -> Iterator[tuple[Any, Board]]:
        import ray

        spec, rows = self.spec, self.catalog.split(split)
        train = self.catalog.split("train")
        with self.reporter.task("search: real images", train.num_rows + rows.num_rows) as task:
            seen = real_images(spec, train, task, same_codec=True)
            held, validation = scored(spec, self.catalog, split, task)
        count = search_plan.section(spec).generator_seeds
        generators = tuple(generator_seeds(spec.seed, count, fresh=split == TEST))
        study = ray.put(Study(spec, self.store.url, withheld(self.catalog), seen, held, folder, generators, validation))
        board = Board.create()
        with follow(board, self.reporter):
            yield study, board

    def _raise_first(self, faults: Sequence[tuning.Ending], trials: int, parameters: Parameters) -> None:
        """Tell every failed trial's reason, then raise the first's."""
        for fault in faults:
            self.reporter.note(f"trial {_work(fault.config, parameters).key} failed: {fault.error}")
        if faults:
            first = faults[0].error
            assert first is not None
            where = (
                f"{len(faults)} of {trials} trials failed, the first "
                f"({_work(faults[0].config, parameters).key}) at {first.where}"
            )
            raise type(first)(where, first.what, first.fix)


def trial(config: dict[str, Any], report: tuning.Report, parameters: Parameters, device: str) -> None:
    """One trial. Reports the mean of its accuracies after each classifier, at the end of a stretch: there ASHA may stop
    it."""
    import ray
    import torch

    from engine.storage.store import open_store

    torch.set_num_threads(1)
    work = _work(config, parameters)
    study: Study = ray.get(parameters["study"][0])
    store, values = open_store(study.url), []
    for seeds in work.stretches:
        names = [search_plan.outcome(study.folder, work.point, seed) for seed in seeds]
        score(study, work, seeds, device, parameters["board"])
        for name in names:
            values.append(documents.read(store, name, SearchOutcome)["accuracy"])
            report(float(np.mean(values)))


def _work(config: Mapping[str, Any], parameters: Parameters) -> Work:
    """What a trial's configuration stands for: a named piece of work, or indices into the space."""
    if "trial" in config:
        return parameters["works"][config["trial"]]
    return Work(parameters["space"].point(config), parameters["stretches"])
