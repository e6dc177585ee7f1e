"""The report's part on copies and controls: what was measured for each size of the set, and the nearest pairs as
images."""

from __future__ import annotations

from typing import Literal, TypedDict

import numpy as np

from engine.errors import DataError
from engine.evaluation.controls import WORDS
from engine.evaluation.evaluationresults import Copies, Pair, SpaceCopies
from engine.evaluation.run_summary import bracket, percent
from engine.images.decode import BadImage, decode
from engine.images.image_reader import Reader
from engine.report.facts import Facts
from engine.report.gallery import Pixels, data_uri
from engine.shards import manifest
from engine.shards.shard_reader import samples
from engine.spec import RunSpec
from engine.storage.store import Store

SPACES: tuple[Literal["pixels", "features"], ...] = ("pixels", "features")
WHICH = {"nearest": "Nearest pairs, each training image once", "middle": "Pairs of the middle distance"}


class Tile(TypedDict):
    """A pair side by side, as data URIs, and its numbers."""

    synthetic: str
    real: str
    text: str


class Strip(TypedDict):
    """Pairs of one kind."""

    title: str
    tiles: list[Tile]


class Likeness(TypedDict):
    """The section on copies."""

    covers: str
    note: str
    rows: list[dict[str, str]]
    controls: list[str]
    strips: list[Strip]
    fault: str


class Section(TypedDict):
    """The template's variable `likeness`."""

    likeness: Likeness | None


def context(store: Store, facts: Facts) -> Section:
    """The template's variable `likeness`; None where the run was not audited."""
    found = None if facts.judge is None else facts.judge.get("copies")
    if found is None:
        return {"likeness": None}
    strips, fault = _strips(store, facts, found["pairs"])
    held, medians = found["held_out"], found["held_out_median"]
    note = (
        f"Held-out images: {held['images']:,} of the {held['split']} split, whose labels are "
        "not read for this. Distances in pixels "
        f"are root mean squares (0 to 255), in features those of {found['features']}; held-out "
        "real images have medians of "
        f"{medians['pixels']:.1f} and {medians['features']:.2f}."
    )
    return {
        "likeness": {
            "covers": found["covers"],
            "note": note,
            "rows": [_row(multiple, space, own[space]) for multiple, own in found["sets"].items() for space in SPACES],
            "controls": _controls(facts, found),
            "strips": strips,
            "fault": fault,
        }
    }


def _row(multiple: str, space: str, own: SpaceCopies) -> dict[str, str]:
    return {
        "set": f"synthetic {multiple}x",
        "space": space,
        "share": percent(own["share"]),
        "interval": bracket(own["interval"], 100),
        "null": percent(own["null"]),
        "null_interval": bracket(own["null_interval"], 100),
        "auc": f"{own['auc']:.3f}",
        "auc_interval": bracket(own["auc_interval"], 1, 3),
        "median": f"{own['median']:.1f}" if space == "pixels" else f"{own['median']:.2f}",
    }


def _controls(facts: Facts, found: Copies) -> list[str]:
    """What the controls hold, and why others are missing."""
    lines = []
    photocopy, augmentation = found["photocopy"], found["augmentation"]
    if photocopy is not None:
        lines.append(
            f"Photocopies: training images with Gaussian noise of sd {photocopy['noise']:.1f} (of "
            "255), so that their median "
            f"distance to training images, {photocopy['median']:.1f}, is that of the synthetic "
            f"ones, {photocopy['target']:.1f}; "
            f"their copy share is {percent(photocopy['share']['share'])}."
        )
    if augmentation is not None:
        chosen = (
            "chosen on validation images"
            if augmentation["chosen_on"]
            else "not chosen, as there is no validation split"
        )
        lines.append(f"Strong augmentation: {augmentation['kind']}, {chosen}.")
    left_out = {} if facts.judge is None else facts.judge.get("left_out", {})
    return lines + [f"Left out: {WORDS[kind]}, as {why}." for kind, why in left_out.items()]


def _strips(store: Store, facts: Facts, pairs: list[Pair]) -> tuple[list[Strip], str]:
    """Pairs as images, by kind; without images, and why, where shards or sources can no longer be read."""
    try:
        made = _synthetic(store, facts.spec, {pair["synthetic"] for pair in pairs})
        rows = sorted({pair["training"] for pair in pairs})
        real = Reader(facts.spec).pixels(facts.catalog.split("train").take(rows))
    except DataError as error:
        return [], str(error)
    train = dict(zip(rows, real, strict=True))
    strips: list[Strip] = []
    for which, title in WHICH.items():
        own = [pair for pair in pairs if pair["which"] == which and pair["synthetic"] in made]
        tiles: list[Tile] = [
            {
                "synthetic": data_uri(made[pair["synthetic"]]),
                "real": data_uri(np.asarray(train[pair["training"]])),
                "text": (
                    f"distance {pair['distance']:.1f}; sample {pair['synthetic']}, training image {pair['training']}"
                ),
            }
            for pair in own
        ]
        if tiles:
            strips.append({"title": title, "tiles": tiles})
    return strips, ""


def _synthetic(store: Store, spec: RunSpec, indices: set[int]) -> dict[int, Pixels]:
    """The samples of these indices in the plan, from the shards that hold them."""
    rows = manifest.load(store).table
    starts = np.asarray(rows["first"].to_numpy(), np.int64)
    numbers = sorted({int(np.searchsorted(starts, index, "right")) - 1 for index in indices})
    found = {}
    for sample in samples(store, (rows["index"][k].as_py() for k in numbers)):
        index = sample.meta.get("index")
        if isinstance(index, int) and index in indices:
            try:
                found[index] = decode(sample.image, spec.images).pixels
            except BadImage as bad:
                what = f"cannot be decoded ({bad.detail})"
                raise DataError(f"sample {sample.key}", what, "run mimeo verify") from None
    return found
