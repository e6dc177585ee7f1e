"""The pieces of an evaluation, each with all classifiers on one set, one corruption or one gap, each published on its
own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from engine import output
from engine.cluster.board import Board
from engine.cluster.progress import Task
from engine.errors import DataError
from engine.evaluation import gap, ood
from engine.evaluation.classifiers import Named, load
from engine.evaluation.corruptions import corrupt
from engine.evaluation.evaluationresults import Counts, GapFound, PairName, SetCounts
from engine.evaluation.ood import Classifier, Ints, Pixels
from engine.images.catalog import Catalog
from engine.images.image_reader import Reader
from engine.shards import manifest
from engine.shards.shard_reader import samples
from engine.spec import RunSpec, digest
from engine.spec.evaluation import OWN, EvaluateSpec
from engine.storage.store import Store
from engine.training.judge_data import Arrays, real_images, synthetic_images
from engine.training.setup import place

if TYPE_CHECKING:
    import torch

FOLDER = output.EVALUATED


@dataclass(frozen=True)
class Unit:
    """One piece: `kind` is set, corruption or gap, `name` which one; `key` holds a hash of all that its result follows
    from."""

    kind: str
    name: str
    key: str

    @property
    def path(self) -> str:
        """Where its result lies in an output."""
        return f"{FOLDER}/{self.kind}-{self.name}-{self.key}.json"


def units(asked: EvaluateSpec, classifiers: Sequence[Named]) -> list[Unit]:
    """All pieces: the run's own test split, the other sets, the corruptions, and a gap for each classifier of real
    images."""
    names = [named.name for named in classifiers]

    def unit(kind: str, name: str, settings: object) -> Unit:
        return Unit(kind, name, digest({"settings": settings, "classifiers": names})[:12])

    found = [unit("set", OWN, None)]
    found += [unit("set", name, one.model_dump(mode="json")) for name, one in asked.sets.items()]
    if asked.corruptions is not None:
        severities = list(asked.corruptions.severities)
        found += [unit("corruption", kind, severities) for kind in dict.fromkeys(asked.corruptions.kinds)]
    if asked.gap is not None:
        settings = asked.gap.model_dump(mode="json")
        found += [unit("gap", named.name, settings) for named in classifiers if named.arm == "real"]
    return found


@dataclass(frozen=True)
class Work:
    """What every unit needs; `classifiers` and their `seeds` by name, opened once a worker."""

    spec: RunSpec
    asked: EvaluateSpec
    catalog: Catalog
    store: Store
    classifiers: dict[str, Classifier]
    seeds: dict[str, int]
    device: torch.device | str

    @property
    def side(self) -> int:
        """The side at which images are corrupted: the largest that a classifier takes."""
        return max(classifier.size for classifier in self.classifiers.values())


def make(unit: Unit, work: Work) -> SetCounts | dict[str, Counts] | GapFound:
    """The result of a unit as plain data."""
    if unit.kind == "set":
        return _own(work) if unit.name == OWN else _other(unit.name, work)
    return _corruption(unit.name, work) if unit.kind == "corruption" else _gap(unit.name, work)


class _Count:
    """Right answers of each classifier by class, and images a class."""

    def __init__(self, work: Work) -> None:
        self._work, self._classes = work, len(work.catalog.class_names)
        self.right = {name: np.zeros(self._classes, np.int64) for name in work.classifiers}
        self.images = np.zeros(self._classes, np.int64)

    def add(self, pixels: Pixels, labels: Ints, among: Ints | None = None) -> None:
        self.images += np.bincount(labels, minlength=self._classes)
        for name, classifier in self._work.classifiers.items():
            found = ood.right(classifier, pixels, labels, among)
            self.right[name] += np.bincount(labels[found], minlength=self._classes)

    def told(self) -> Counts:
        return {"images": self.images.tolist(), "right": {name: n.tolist() for name, n in self.right.items()}}


def _test_images(work: Work) -> Iterator[tuple[Pixels, Ints]]:
    rows, reader = work.catalog.split("test"), Reader(work.spec)
    for first in range(0, rows.num_rows, ood.CHUNK):
        part = rows.slice(first, ood.CHUNK)
        yield ood.sized(reader.pixels(part), work.side), np.asarray(part["label"].to_numpy(), np.int64)


def _own(work: Work) -> SetCounts:
    count = _Count(work)
    for pixels, labels in _test_images(work):
        count.add(pixels, labels)
    every = list(range(len(work.catalog.class_names)))
    told = count.told()
    return {
        "images": told["images"],
        "right": told["right"],
        "classes": every,
        "restricted": False,
        "left_out": {},
        "bad": 0,
        "trained_on": 0,
    }


def _other(name: str, work: Work) -> SetCounts:
    asked, names = work.asked.sets[name], work.catalog.class_names
    other = ood.open_set(name, asked, work.spec, names)
    among = other.present if asked.restrict and len(other.present) < len(names) else None
    known = frozenset(work.catalog.split("train")["pixels_sha256"].to_pylist())
    count, read = _Count(work), ood.Read()
    for pixels, labels in ood.stream(other, known, read):
        count.add(ood.sized(pixels, work.side), labels, among)
    told = count.told()
    return {
        "images": told["images"],
        "right": told["right"],
        "classes": other.present.tolist(),
        "restricted": among is not None,
        "left_out": other.left_out,
        "bad": other.bad + read.bad,
        "trained_on": read.trained_on,
        "digest": read.digest,
    }


def _corruption(kind: str, work: Work) -> dict[str, Counts]:
    assert work.asked.corruptions is not None
    severities = work.asked.corruptions.severities
    counts, first = {severity: _Count(work) for severity in severities}, 0
    for pixels, labels in _test_images(work):
        for severity, count in counts.items():
            count.add(corrupt(pixels, kind, severity, seed=work.spec.seed % 2**32, first=first), labels)
        first += len(labels)
    return {str(severity): count.told() for severity, count in counts.items()}


def _gap(name: str, work: Work) -> GapFound:
    """Pairs: training images beside synthetic ones, training images beside held-out ones, held-out beside synthetic
    ones."""
    assert work.asked.gap is not None
    classifier, asked, classes = work.classifiers[name], work.asked.gap, len(work.catalog.class_names)
    sets, keys = _three(work, classifier.size)
    features = {key: classifier.features(one.pixels).astype(np.float64) for key, one in sets.items()}
    labels, n = sets["train"].labels, len(sets["train"].labels)
    cnn = gap.network(asked.steps, work.spec.judge.width, work.seeds[name], work.device)
    out: GapFound = {"images": n, "pairs": {}}
    for pair, (a, b) in PAIRS.items():
        origin, both = np.repeat(np.array([0, 1]), n), np.concatenate([labels, labels])
        stacked = np.concatenate([features[a], features[b]])
        pixels = np.concatenate([sets[a].pixels, sets[b].pixels])
        groups = np.unique([*keys[a], *keys[b]], return_inverse=True)[1]
        seen = gap.cross_validated(stacked, origin, both, groups, gap.logistic, folds=asked.folds)
        drawn = gap.cross_validated(pixels, origin, both, groups, cnn, folds=asked.folds)
        out["pairs"][pair] = {
            "features": {"value": seen.value, "error": seen.error},
            "pixels": {"value": drawn.value, "error": drawn.error},
            "classes": gap.overlap(features[a], features[b], labels, classes, asked.dimensions),
        }
    return out


PAIRS: dict[PairName, tuple[str, str]] = {
    "synthetic": ("train", "synthetic"),
    "real": ("train", "held_out"),
    "held_out": ("held_out", "synthetic"),
}


class _Silent(Task):
    """Counts without a word: the piece has a line of its own."""

    def _show(self, fields: dict[str, float | int | str]) -> None:
        return


def _three(work: Work, side: int) -> tuple[dict[str, Arrays], dict[str, list[str]]]:
    """Training, held-out and synthetic images: equally many of each class, at one size and through one codec.

    Also the catalog key of each real image, and of the one that each synthetic image was drawn after.
    """
    spec, asked = work.spec, work.asked.gap
    assert asked is not None
    train, test = work.catalog.split("train"), work.catalog.split("test")
    quiet = _Silent("evaluate: gap", 0, "images")
    made = synthetic_images(spec, work.store, min(spec.generate.count, 2 * asked.images), quiet, side=side)
    labels = [np.asarray(rows["label"].to_numpy(), np.int64) for rows in (train, test)]
    seeds = [spec.seed % 2**32, spec.seed % 2**32, None]
    classes = len(work.catalog.class_names)
    chosen = gap.balanced([*labels, made.labels], classes, asked.images, seeds)
    if len(chosen[0]) < asked.folds * classes:
        what = f"finds {len(chosen[0]) // classes} images a class in the scarcest set, for {asked.folds} folds"
        raise DataError("evaluate.gap", what, "raise evaluate.gap.images, lower its folds, or leave gap out")
    found, keys = {}, {}
    for key, rows, own in zip(("train", "held_out"), (train, test), chosen, strict=False):
        arrays = real_images(spec, rows.take(own), quiet, same_codec=True, side=side)
        found[key] = Arrays(ood.sized(arrays.pixels, side), arrays.labels, arrays.index)
        keys[key] = rows["key"].take(own).to_pylist()
    index = chosen[2]
    found["synthetic"] = Arrays(ood.sized(made.pixels[index], side), made.labels[index], made.index[index])
    keys["synthetic"] = _anchors(work.store, made.index[index].tolist())
    return found, keys


def _anchors(store: Store, indices: list[int]) -> list[str]:
    """The catalog key of the training image that each sample was drawn after; a name of its own where none is noted."""
    rows, wanted, found = manifest.load(store).table, set(indices), dict[int, str]()
    starts = np.asarray(rows["first"].to_numpy(), np.int64)
    shards = sorted({int(np.searchsorted(starts, index, "right")) - 1 for index in wanted})
    for sample in samples(store, (rows["index"][k].as_py() for k in shards)):
        index = sample.meta.get("index")
        if isinstance(index, int) and index in wanted:
            found[index] = str(sample.meta.get("anchor") or sample.key)
    return [found[index] for index in indices]


class Config(TypedDict):
    """What the workers are sent."""

    units: Sequence[Unit]
    classifiers: Sequence[Named]
    spec: RunSpec
    catalog: Catalog
    store: Store
    board: Board


def loop(config: Config) -> None:
    """The worker: makes and publishes its share of the units."""
    import torch

    here = place()
    torch.set_num_threads(1)
    own = config["units"][here.rank :: here.world_size]
    spec, catalog, store, board = config["spec"], config["catalog"], config["store"], config["board"]
    named = config["classifiers"]
    opened = {one.name: load(one, spec, store, catalog.class_names, here.device) for one in named}
    seeds = {one.name: one.seed for one in named}
    assert spec.evaluate is not None
    work = Work(spec, spec.evaluate, catalog, store, opened, seeds, here.device)
    name = "evaluate" if here.world_size == 1 else f"evaluate: worker {here.rank + 1}"
    for k, unit in enumerate(own):
        board.update(name, k, len(own), "pieces", now=f"{unit.kind} {unit.name}")
        if not store.exists(unit.path):
            store.create(unit.path, json.dumps(make(unit, work), sort_keys=True, allow_nan=False).encode())
    board.update(name, len(own), len(own), "pieces")
