"""Finished outputs with real little images, made through the shard writer alone (no model, no Ray)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

import numpy as np
from PIL import Image

from engine.shards import manifest, records
from engine.shards.names import PLAN, PlanFacts, tar_path
from engine.shards.writer import Quarantined, ShardBuilder
from engine.storage.store import Store

CLASSES = 10


def picture(index: int, size: int = 8) -> np.ndarray:
    """The HWC uint8 pixels of sample `index`."""
    return np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)


def files(index: int) -> dict[str, bytes]:
    """The members of sample `index`."""
    buffer = io.BytesIO()
    Image.fromarray(picture(index)).save(buffer, "PNG")
    meta = {"index": index, "label": index % CLASSES, "prompt": f"photo of {index % CLASSES}"}
    return {"png": buffer.getvalue(), "cls": str(index % CLASSES).encode(), "json": json.dumps(meta).encode()}


def digest_of(shard: int) -> str:
    """A stand-in for the identity of a shard's plan."""
    return f"{shard:064x}"


def publish_shard(store: Store, facts: PlanFacts, shard: int, given_up: Iterable[int] = (), **how: object) -> None:
    """Build and publish one shard with its record; samples in `given_up` are quarantined."""
    builder, gone = ShardBuilder(), set(given_up)
    first, planned = facts.span(shard)
    for index in range(first, first + planned):
        if index in gone:
            builder.quarantine(Quarantined(index, index % CLASSES, "constant_image", 3))
        else:
            builder.add(facts.key(index), files(index))
    built = builder.finish()
    if store.create(tar_path(facts.shard(shard)), built.data):
        details = {"attempt": 1, "seconds": 2.0, "batch_size": 4, "device": "cpu", **how}
        records.publish(store, records.make(facts, shard, built, builder.quarantined, digest_of(shard), **details))


def make_output(
    store: Store, count: int = 23, shard_size: int = 5, given_up: Iterable[int] = (), spec_hash: str = "5" * 64
) -> PlanFacts:
    """A whole, sealed output in `store`; returns its plan."""
    facts = PlanFacts("toy", count, shard_size, spec_hash)
    store.create(PLAN, json.dumps(facts.to_json()).encode())
    gone = list(given_up)
    for shard in range(facts.shards):
        first, planned = facts.span(shard)
        publish_shard(store, facts, shard, [index for index in gone if first <= index < first + planned])
    manifest.finalise(store, facts)
    return facts
