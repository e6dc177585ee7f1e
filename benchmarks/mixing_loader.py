"""Images a second of the mixing loader and of stock webdataset, which read the same shards (python -m
benchmarks.mixing_loader).

Both give batches of uint8 pixels (B, H, W, 3) with labels, in one process, in turning order, in one run. "webdataset"
is
`WebDataset(shards, shardshuffle) | shuffle(1000) | decode("rgb8") | to_tuple | batched`: it decodes every epoch anew,
as any reader of shards does that keeps nothing. "mixing" draws half of each batch from the shards and half from as many
real images, by the plan that training uses. Its ingest (Ray Data over the same shards: hash against the manifest,
checked decoding, blocks in the object store) is timed apart, for the shards alone, and counted into the figures for 1
and 10 epochs. Starting Ray is in none. Ratios are medians over rounds.

The targets are of processor time, all threads counted, against the fastest that stock webdataset can be made with a
decoder of one's own: "simplejpeg" is the same pipeline with simplejpeg in the place of PIL. "reading" is the ingest's
function called in this process.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pairs
from engine.cluster.session import session
from engine.shards.mixing import Mixture, shares
from engine.spec import RunSpec, validate
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import Store, open_store
from engine.training.classifier import ingest, training_sets
from engine.training.classifier.augment import Augment
from engine.training.classifier.classifier_arms import REAL, SYNTHETIC, Part
from engine.training.classifier.loader import Feed, Loader
from tests.support.synthetic import Quiet, noisy_digits, write_shards

NAMES = tuple("0123456789")
BATCH = 128
CASES: dict[str, dict[str, Any]] = {
    "png 8 px": {"size": 8, "format": "png", "count": 4000},
    "jpg 32 px": {"size": 32, "format": "jpg", "count": 4000, "target": 4.0},
    "jpg 224 px": {"size": 224, "format": "jpg", "count": 2304, "target": 1.25},
}
QUICK = {"count": 1024}
SIDES = ("webdataset", "simplejpeg", "mixing", "reading")


def output(folder: Path, case: dict[str, Any]) -> tuple[RunSpec, Store]:
    """A sealed output of enlarged, noisy digits."""
    spec = validate(
        {
            "name": "mixing",
            "source": {"kind": "digits"},
            "images": {"size": case["size"]},
            "generate": {"count": case["count"], "shard_size": case["count"] // 4, "format": case["format"]},
            "train": {"batch": BATCH},
        }
    )
    store = open_store(str(folder))
    pixels, labels = noisy_digits(min(case["count"], 1000), case["size"])
    repeats = -(-case["count"] // len(pixels))
    pixels, labels = np.concatenate([pixels] * repeats), np.concatenate([labels] * repeats)
    write_shards(store, spec, pixels, labels, NAMES)
    return spec, store


def with_simplejpeg(key: str, data: bytes) -> Any:
    """A decoder as webdataset's users write them."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB") if key.endswith(".jpg") else None


def stock(store: Store, extension: str, decoder: Any = "rgb8") -> Iterator[Any]:
    """Stock webdataset over the shards, for one epoch."""
    import webdataset as wds

    shards = sorted(str(path) for path in (Path(store.url) / "data").glob("*.tar"))
    data = wds.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
    return iter(data.shuffle(1000).decode(decoder).to_tuple(extension, "cls").batched(BATCH, partial=False))


def loader(spec: RunSpec, images: ingest.Images) -> Loader:
    """The training's loader: real and synthetic images, half and half."""
    assert spec.train is not None
    sets = {REAL: images, SYNTHETIC: images}
    parts = [Part(name, np.arange(len(images), dtype=np.int64)) for name in sets]
    plan = Mixture([images.labels, images.labels], BATCH, 0, share=shares([len(images)] * 2, 0.5))
    return Loader(Feed(sets, parts, plan, Augment(spec.train, spec.images.size, 0)), slice(0, BATCH))


class Case:
    """One case: its shards, and an epoch of every side."""

    def __init__(self, case: dict[str, Any], folder: Path) -> None:
        self._format, self.steps = case["format"], case["count"] // BATCH
        self._spec, self._store = output(folder, case)
        self._asked = training_sets.requests(
            SYNTHETIC, [training_sets.own(self._spec, self._store)], case["count"], NAMES
        )
        self._loader: Loader | None = None

    def ingest(self) -> float:
        """Read the shards anew by Ray Data, for the next epoch of `mixing`; seconds."""
        if self._loader is not None:
            self._loader.close()
        began = time.perf_counter()
        images = ingest.ingest(self._spec, self._asked, Quiet())[SYNTHETIC]
        taken = time.perf_counter() - began
        self._loader = loader(self._spec, images)
        return taken

    def epoch(self, side: str) -> tuple[float, float]:
        """Seconds and processor seconds of a side for `steps` batches."""
        wall, processor = time.perf_counter(), time.process_time()
        seen = self._seen(side)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        assert seen >= self.steps * BATCH - 4 * BATCH
        return wall * self.steps * BATCH / seen, processor * self.steps * BATCH / seen

    def _seen(self, side: str) -> int:
        if side == "mixing":
            assert self._loader is not None
            return sum(len(self._loader.batch(step)[1]) for step in range(self.steps))
        if side == "reading":
            return self._read()
        decoder = with_simplejpeg if side == "simplejpeg" and self._format == "jpg" else "rgb8"
        return sum(len(labels) for _, labels in stock(self._store, self._format, decoder))

    def _read(self) -> int:
        """What the ingest's tasks do, one after another."""
        import pyarrow as pa
        import ray

        shared, seen = ray.put({"spec": self._spec, "requests": list(self._asked)}), 0
        for number, request in enumerate(self._asked):
            for piece in request.pieces:
                asked = pa.table({"chunk": [0], "request": [number], "piece": [list(piece)]})
                seen += ingest._read(asked, [shared]).num_rows
        return seen


def measure(name: str, case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One case, in turning order, after a round to warm up."""
    seconds: dict[str, list[float]] = {"ingest": [], **{side: [] for side in SIDES}}
    processor: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="mixing-loader-") as folder:
        made = Case(case, Path(folder))
        for number in range(rounds + 1):
            first = made.ingest()
            taken = {side: made.epoch(side) for side in (SIDES if number % 2 else reversed(SIDES))}
            if number:
                seconds["ingest"].append(first)
                for side, (wall, cpu) in taken.items():
                    seconds[side].append(wall)
                    processor[side].append(cpu)
    count, ratio_cpu = made.steps * BATCH, pairs.ratio(processor["simplejpeg"], processor["mixing"])
    spread = pairs.spread(processor["simplejpeg"])
    both = [own + first for own, first in zip(processor["mixing"], processor["reading"], strict=True)]
    target = case.get("target")
    return {
        "case": name,
        "images": count,
        "batch": BATCH,
        "rounds": rounds,
        "images_per_s": {side: count / statistics.median(values) for side, values in seconds.items()},
        "mixing_over_webdataset": ratio(seconds, 0, 1),
        "with_ingest_1_epoch": ratio(seconds, 1, 1),
        "with_ingest_10_epochs": ratio(seconds, 1, 10),
        "with_ingest_100_epochs": ratio(seconds, 1, 100),
        "cpu_us_an_image": {side: 1e6 * statistics.median(values) / count for side, values in processor.items()},
        "cpu_over_simplejpeg": ratio_cpu,
        "cpu_over_simplejpeg_with_reading": pairs.ratio(processor["simplejpeg"], both),
        "spread": spread,
        "target": target,
        "verdict": pairs.verdict(ratio_cpu, spread * ratio_cpu, target) if target else "no target",
        "seconds": seconds,
        "processor": processor,
    }


def ratio(seconds: dict[str, list[float]], ingests: int, epochs: int) -> float:
    """The median over rounds of how many times faster the mixing loader is over so many epochs."""
    rows = zip(seconds["webdataset"], seconds["mixing"], seconds["ingest"], strict=True)
    return statistics.median(stock * epochs / (own * epochs + first * ingests) for stock, own, first in rows)


def said(row: dict[str, Any]) -> str:
    """A case as a line."""
    rates = ", ".join(f"{side} {rate:,.0f}/s" for side, rate in row["images_per_s"].items())
    return (
        f"{row['case']}: {rates}; mixing over webdataset {row['mixing_over_webdataset']:.2f}, "
        "with ingest over 10 epochs "
        f"{row['with_ingest_10_epochs']:.2f}; processor time over simplejpeg "
        f"{row['cpu_over_simplejpeg']:.2f}, with the "
        f"reading {row['cpu_over_simplejpeg_with_reading']:.2f}: {row['verdict']}"
    )


def main() -> None:
    """Measure the cases, print one line each, write the JSON; exit status 1 where a target was missed."""
    import torch

    arguments = pairs.parser(__doc__, pairs=5, cases=CASES).parse_args()
    count, changes = (2, QUICK) if arguments.quick else (arguments.pairs, {})
    torch.set_num_threads(1)
    with session(ResourcesSpec(device="cpu")):
        rows = [measure(name, CASES[name] | changes, count) for name in arguments.case or CASES]
    pairs.finish("mixing_loader", rows, arguments, text="\n".join(map(said, rows)))


if __name__ == "__main__":
    main()
