"""One classifier of a study on the images that it is scored on: its accuracy, and each image right or wrong."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from engine.cluster.progress import Task
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec
from engine.statistics.population import Floats
from engine.storage.store import Store
from engine.study.studyresults import JudgeReading
from engine.training.judge_data import Arrays, real_images
from engine.training.judge_fit import Arm, Data

VALIDATION, TEST = "validation", "test"  # the splits that studies read: to choose, and once after it


@dataclass(frozen=True)
class Reading:
    """`right` is what `packed` makes of right and wrong, in the order of the images; the others count its training
    images."""

    accuracy: float
    right: str
    real_images: int
    synthetic_images: int

    def to_json(self) -> JudgeReading:
        """Plain data."""
        return cast(JudgeReading, asdict(self))


def read(arm: Arm, seed: int, spec: JudgeSpec, data: Data, device: str) -> Reading:
    """Train one classifier and score it once on `data.test`; ConfigError where its training diverges."""
    from engine.training import judge_model
    from engine.training.judge_fit import fit

    model, _, drawn = fit(arm, seed, spec, data, device)
    held = data.test
    right = judge_model.predict(model, held.part().pixels, device) == held.labels
    accuracy = float(right.mean())
    assert math.isfinite(accuracy)
    real = len(data.train.labels) if arm.kind != "synthetic" else 0
    return Reading(accuracy, packed(right), real, len(drawn.labels) if drawn is not None else 0)


def scored(spec: RunSpec, catalog: Catalog, split: str, task: Task) -> tuple[Arrays, Arrays | None]:
    """The images of the split that is read, and those that `judge.tune` chooses on (None without it)."""
    held = real_images(spec, catalog.split(split), task, same_codec=False)
    if not spec.judge.tune:
        return held, None
    own = held if split == VALIDATION else real_images(spec, catalog.split(VALIDATION), task, same_codec=False)
    return held, own


def packed(right: NDArray[np.bool_]) -> str:
    """Right and wrong (N,) as text, a bit an image."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, images: int) -> NDArray[np.bool_]:
    """The inverse of `packed` for `images` of them."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=images).astype(bool)


def shares(texts: Sequence[str], images: int) -> Floats:
    """The share (N,) of the classifiers that have each image right."""
    return np.mean([unpacked(text, images) for text in texts], axis=0)


def note_test(store: Store, command: str, arms: Sequence[str], classifiers: Sequence[str], images: int) -> None:
    """Write a study's reading of the test split down in the ledger of its output."""
    from engine.storage import readings

    readings.note(store, command, "after the choice", arms, classifiers, images)


def need_validation(planned: float, study: str) -> None:
    """Refuse, in one line (ConfigError), a study that has no images to choose on."""
    if not planned:
        what = f"is 0, and {study} compares and chooses on validation images alone"
        raise ConfigError("split.validation", what, "set it, such as split.validation: 0.2")
