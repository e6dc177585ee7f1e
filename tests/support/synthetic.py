"""Finished outputs without a generator: real catalogs, and shards whose "synthetic" images are noisy digits nobody
trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from engine.images import catalog
from engine.images.catalog import Catalog
from engine.images.encode import encode
from engine.shards import manifest, records
from engine.shards.names import PLAN, PlanFacts, tar_path
from engine.shards.writer import Quarantined, ShardBuilder
from engine.spec import RunSpec, canonical_json, spec_hash, validate
from engine.storage.claim import claim
from engine.storage.store import Store, open_store


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: dict[str, QuietTask] = {}

    def task(self, name: str, total: int, unit: str = "images") -> QuietTask:
        """A task that remembers its last count."""
        return self.tasks.setdefault(name, QuietTask(total))

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)


class QuietTask:
    """A task that remembers its last count."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def update(self, done: int, **fields: Any) -> None:
        """Keep the count."""
        self.done = done

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> QuietTask:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def digits_spec(**sections: Any) -> RunSpec:
    """60 training digits, 200 test digits, 120 planned samples, a judge of few steps."""
    data: dict[str, Any] = {
        "name": "small",
        "source": {"kind": "digits"},
        "images": {"size": 8},
        "split": {"train": 60, "validation": 0, "test": 200},
        "conditions": {"prompt": "photo of {class}"},
        "generate": {"count": 120, "shard_size": 50},
        "judge": {"multiples": [1, 2], "seeds": 2, "steps": 30},
        "resources": {"device": "cpu"},
    }
    for name, section in sections.items():
        data[name] = {**data[name], **section} if isinstance(data.get(name), dict) else section
    return validate(data)


def claimed(folder: Path, spec: RunSpec) -> tuple[Store, Catalog]:
    """An output that the spec owns, with its catalog; Ray must be up."""
    store = open_store(str(folder))
    claim(store, spec)
    return store, catalog.build(spec, store, Quiet())


def noisy_digits(count: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """`count` digits from the end of scikit-learn's set with noise: pixels (N, size, size, 3) uint8, labels (N,)."""
    data = load_digits()
    rows = np.arange(len(data.images) - 1, -1, -1)[:count]
    noise = np.random.default_rng(0).normal(0, 12, (count, 8, 8))
    grey = np.clip(data.images[rows] / 16 * 255 + noise, 0, 255).round().astype(np.uint8)
    grey = grey.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return grey[..., None].repeat(3, axis=3), data.target[rows]


def write_shards(
    store: Store,
    spec: RunSpec,
    pixels: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    lost: tuple[int, ...] = (),
) -> None:
    """Publish `generate.count` samples as the generation job does; those in `lost` are quarantined."""
    facts = PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec))
    store.create(PLAN, canonical_json({**facts.to_json(), "checkpoint": "c" * 64, "format": 1}).encode())
    for k in range(facts.shards):
        first, planned = facts.span(k)
        builder = ShardBuilder()
        for index in range(first, first + planned):
            label = int(labels[index])
            if index in lost:
                builder.quarantine(Quarantined(index, label, "constant_image", 3))
                continue
            meta = {"index": index, "label": label, "class": names[label], "prompt": f"photo of {names[label]}"}
            image = encode(pixels[index], spec.generate.format, spec.generate.quality)
            files = {spec.generate.format: image, "cls": str(label).encode(), "json": json.dumps(meta).encode()}
            builder.add(facts.key(index), files)
        tar = builder.finish()
        store.create(tar_path(facts.shard(k)), tar.data)
        records.publish(store, records.make(facts, k, tar, builder.quarantined, "d" * 64))
    manifest.finalise(store, facts)
