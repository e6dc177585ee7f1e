"""The audit of a synthetic set before its judges are trained: copies and controls, measured once and kept in
`results/copies.json`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine import output
from engine.cluster.progress import Reporter
from engine.errors import MimeoError
from engine.evaluation import controls
from engine.evaluation.controls import Planned
from engine.evaluation.copies import COVERS, copy_share, measure, pairs, verdict
from engine.evaluation.evaluationresults import AuditedCopies, Copies, HeldOutSplit, Photocopy, SetCopies
from engine.evaluation.nearest import FeatureSpace, PixelSpace, is_grey
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.storage import documents
from engine.storage.store import Store
from engine.training import judge_fit
from engine.training import judge_training as training
from engine.training.judge_data import CHUNK, LOSSY, Arrays, real_images, shrink, through_codec
from engine.training.judge_fit import Arm, Data

RESULT = output.COPIES
FEWEST = 100  # validation images: with fewer, the test split's images are the held-out ones
FEATURES = "the last features of a judge trained on the real training images (seed 0)"


@dataclass(frozen=True)
class Audit:
    """What a judged run's audit needs; `spec` has its multiples written out."""

    spec: RunSpec
    catalog: Catalog
    store: Store
    progress: Reporter
    planned: Planned

    def prepare(self, data: Data, kinds: set[str]) -> Data:
        """The judges' data with what control arms of these kinds train on; the audit is made where it is not there
        yet."""
        if data.synthetic is None:
            return data
        found = self.copies(data)
        assert found is not None  # there are synthetic images, so an arm asks for some
        sets: dict[str, Arrays] = {}
        if "photocopy" in kinds and found["photocopy"] is not None:
            count = max(arm.multiple for arm in self.planned.arms) * data.n
            noise, seed = found["photocopy"]["noise"], controls.seed_of(self.spec)
            sets["photocopy"] = controls.photocopies(data.train, count, noise, seed)
        if "reconstructed" in kinds:
            sets["reconstructed"] = Arrays(self._reconstructed(), data.train.labels, data.train.index)
        augmentation = found["augmentation"]
        return replace(data, controls=sets, augmentation=augmentation["kind"] if augmentation else data.augmentation)

    def copies(self, data: Data | None = None) -> Copies | None:
        """The published audit, or a new one; None where the run's arms have no synthetic images."""
        multiples = sorted({arm.multiple for arm in judge_fit.arms(self.spec.judge) if arm.multiple})
        if not multiples:
            return None
        known = documents.find(self.store, RESULT, Copies)
        if known is not None:
            return known
        started = time.monotonic()
        if data is None:
            data = training.images(self.spec, self.catalog, self.store, self.progress, multiples[-1])
        split = "validation" if self.catalog.split("validation").num_rows >= FEWEST else "test"
        with self.progress.task("judge: copies and controls", 1, "audits") as task:
            held = self._held_out(split, data)
            found = _remotely(self.spec, audited, self.spec, data, held, split, multiples, self.planned.arms)
            task.update(1)
        found["seconds"] = round(time.monotonic() - started, 3)
        self.store.replace(RESULT, json.dumps(found, indent=1, sort_keys=True, allow_nan=False).encode())
        return documents.read(self.store, RESULT, Copies)

    def _held_out(self, split: str, data: Data) -> Arrays:
        """Real images that nobody trained on, through the codec of the synthetic ones."""
        if split == "test" and self.spec.generate.format not in LOSSY:
            return data.test
        rows = self.catalog.split(split)
        with self.progress.task("judge: held-out images", rows.num_rows) as task:
            return real_images(self.spec, rows, task, same_codec=True)

    def _reconstructed(self) -> Any:
        with self.progress.task("judge: reconstructed images", 1, "sets") as task:
            rows = self.catalog.split("train")
            found = _remotely(self.spec, reconstructed, self.spec, rows, self.planned.autoencoder)
            task.update(1)
        return found


def _remotely(spec: RunSpec, function: Any, *arguments: Any) -> Any:
    """One Ray task of a whole CPU or GPU; its own MimeoError where it has raised one."""
    import ray
    from ray.exceptions import RayTaskError

    from engine.cluster.session import device
    from engine.training.setup import await_room

    where = device(spec.resources)
    await_room(spec.resources.model_copy(update={"train_workers": 1, "train_workers_min": None}), where)
    slots: dict[str, object] = {"num_gpus": 1, "num_cpus": 1} if where == "cuda" else {"num_cpus": 1}
    slots |= {"label_selector": dict(spec.resources.labels)} if spec.resources.labels else {}
    task = ray.remote(function).options(**slots)
    large = [ray.put(one) if isinstance(one, Data | Arrays) else one for one in arguments]
    try:
        return ray.get(task.remote(*large, where))
    except RayTaskError as error:
        if isinstance(error.cause, MimeoError):
            raise error.cause from None
        raise


def audited(
    spec: RunSpec,
    data: Data,
    held: Arrays,
    split: HeldOutSplit,
    multiples: list[int],
    wanted: tuple[Arm, ...],
    device: str,
) -> AuditedCopies:
    """All that `Copies` says but its seconds: distances in both spaces, the photocopies' noise, the strong
    augmentation."""
    import torch

    torch.set_num_threads(max(1, spec.resources.threads))
    assert data.synthetic is not None
    synthetic, kinds = data.synthetic, {arm.kind for arm in wanted}
    edges = [len(synthetic.below(multiple * data.n).labels) for multiple in multiples]
    model, _, _ = judge_fit.fit(Arm("real"), 0, spec.judge, data, device)
    pixels = PixelSpace(is_grey(synthetic.pixels) and is_grey(data.train.pixels) and is_grey(held.pixels))
    spaces = [
        measure(space, synthetic.pixels, data.train.pixels, held.pixels, edges, device)
        for space in (pixels, FeatureSpace(model, device))
    ]
    sets: dict[str, SetCopies] = {}
    for number, (multiple, images) in enumerate(zip(multiples, edges, strict=True)):
        shares = [copy_share(one.made.distance[:images], one.held_out) for one in spaces]
        sets[str(multiple)] = {
            "pixels": spaces[0].prefix(number, images),
            "features": spaces[1].prefix(number, images),
            "verdict": verdict(shares),
        }
    photocopy: Photocopy | None = None
    if "photocopy" in kinds:
        target = float(np.median(spaces[0].made.distance))
        noise, distances = controls.noise_of(target, pixels, data.train, controls.seed_of(spec), device)
        share = copy_share(distances, spaces[0].held_out).to_json()
        photocopy = {"noise": noise, "target": target, "median": float(np.median(distances)), "share": share}
    validation = held if split == "validation" else None
    shown = [pair | {"synthetic": int(synthetic.index[pair["synthetic"]])} for pair in pairs(spaces[0].made)]
    return {
        "held_out": {"split": split, "images": len(held.labels)},
        "training": data.n,
        "features": FEATURES,
        "held_out_median": {
            "pixels": float(np.median(spaces[0].held_out)),
            "features": float(np.median(spaces[1].held_out)),
        },
        "sets": sets,
        "pairs": shown,
        "photocopy": photocopy,
        "augmentation": controls.strongest(data, validation, spec.judge, device) if "augmented" in kinds else None,
        "covers": COVERS,
    }


def reconstructed(spec: RunSpec, rows: Any, autoencoder: str, device: str = "cpu") -> Any:
    """Training images (N, side, side, 3) uint8 after the generator's VAE, in the synthetic set's codec, at the judges'
    size."""
    from engine.images.image_reader import Reader
    from engine.training.classifier import reconstruct
    from engine.training.judge_data import resolution

    reader, side, lossy = Reader(spec), resolution(spec), spec.generate.format in LOSSY
    out = []
    for first in range(0, rows.num_rows, CHUNK):
        pixels = reconstruct.reconstructed(reader.pixels(rows.slice(first, CHUNK)), autoencoder)
        out.append(shrink(np.stack([through_codec(image, spec) for image in pixels]) if lossy else pixels, side))
    return np.concatenate(out)
