"""One judged output of a hostile data set: class names that are markup, a bad image, a sample given up."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from engine.images.catalog import Catalog
from engine.spec import RunSpec, validate
from engine.storage.store import Store
from tests.support.judged import publish_outcomes
from tests.support.synthetic import claimed, write_shards

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "{{ 7 * 7 }}{% raw %}",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "``` $\\frac{1}{0$ </style></title>",
)
SHARES = {
    "real": [[0.9, 0.8, 1.0, 1.0, 1.0], [1.0, 0.8, 1.0, 0.9, 1.0], [0.9, 0.9, 1.0, 1.0, 1.0]],
    "synthetic_1x": [[0.8, 0.6, 0.9, 0.9, 0.2], [0.8, 0.6, 0.9, 0.9, 0.3], [0.8, 0.7, 0.8, 0.9, 0.3]],
    "synthetic_3x": [[0.9, 0.7, 0.9, 0.9, 0.4], [0.9, 0.8, 0.9, 0.9, 0.4], [0.9, 0.7, 0.9, 0.9, 0.4]],
    "mixed_1x": [0.9, 0.9, 1.0],
    "mixed_3x": [1.0, 1.0, 0.9],
    "duplicated_3x": [0.9, 0.9, 1.0],
    "photocopy_3x": [0.9, 0.9, 0.9],
    "augmented": [0.8, 0.9, 0.9],
}
SIZE, CLASSES = 16, len(HOSTILE)


def image(label: int, number: int) -> np.ndarray:
    """(16, 16, 3) uint8: its class as the red level, its number as the green one."""
    pixels = np.random.default_rng(number).integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0] += np.uint8(40 * label)
    pixels[..., 1] = number
    return pixels


def write_parquet(path: Path, per_class: int) -> None:
    """A Parquet file in the Hugging Face layout, one broken image at its end."""
    rows = []
    for k in range(per_class * CLASSES):
        buffer = io.BytesIO()
        Image.fromarray(image(k % CLASSES, k)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{k:04d}.png"}, "label": k % CLASSES})
    rows.append({"image": {"bytes": b"<html>not an image", "path": "bad.png"}, "label": 0})
    pq.write_table(pa.Table.from_pylist(rows), path)


@dataclass(frozen=True)
class JudgedRun:
    """A finished output: its spec, store and catalog."""

    spec: RunSpec
    store: Store
    catalog: Catalog


def judged_output(folder: Path) -> JudgedRun:
    """100 real images in 5 classes (50 to train on, 50 to test), 150 synthetic ones, one of them quarantined, judged;
    Ray must be up."""
    write_parquet(folder / "real.parquet", per_class=20)
    spec = validate(
        {
            "name": "hostile",
            "source": {"kind": "parquet", "path": str(folder / "real.parquet"), "class_names": list(HOSTILE)},
            "images": {"size": SIZE},
            "split": {"train": 50, "test": 50},
            "generate": {"count": 150, "shard_size": 60},
            "judge": {"multiples": [1, 3], "steps": 40},
            "resources": {"device": "cpu"},
        }
    )
    store, catalog = claimed(folder / "run", spec)
    labels = np.arange(150) % CLASSES
    pixels = np.stack([image(int(label), 100 + index) for index, label in enumerate(labels)])
    write_shards(store, spec, pixels, labels, catalog.class_names, lost=(7,))
    publish_outcomes(store, spec, catalog, SHARES)
    curve = {"steps": 3, "seconds": 1.0, "step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}
    store.replace("results/pretrain.json", json.dumps({"images": 50, "stages": {"unet": curve}}).encode())
    store.replace("results/seconds.json", b'{"generate": 12.0}')
    return JudgedRun(spec, store, catalog)
