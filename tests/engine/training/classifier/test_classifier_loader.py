"""Batches for classifiers: pixels of the rows that the plan drew, in blocks of pixels and of encoded images, in any
order of steps."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from engine.images.encode import encode
from engine.shards.mixing import Mixture, shares
from engine.spec.classifier import TrainSpec
from engine.training.classifier.augment import Augment
from engine.training.classifier.classifier_arms import Part
from engine.training.classifier.ingest import COLUMNS, Images
from engine.training.classifier.loader import Feed, Loader

SIZES = {"real": [7, 5], "synthetic": [20, 4, 16]}


def pictures(name: str, side: int) -> np.ndarray:
    count = sum(SIZES[name])
    return np.random.default_rng(len(name)).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def blocks(name: str, side: int) -> Images:
    """A set in several blocks, one of them a slice of a longer table."""
    pixels, first, made = pictures(name, side), 0, []
    labels = np.arange(len(pixels), dtype=np.int64) % 3
    for number, size in enumerate(SIZES[name]):
        data = [image.tobytes() if side <= 64 else encode(image, "png", 0) for image in pixels[first : first + size]]
        pad = [b"\x00" * 5] if number else []
        numbers = [pa.array([0] * len(pad + data), pa.int64())] * 3
        made.append(pa.table([*numbers, pa.array(pad + data, pa.large_binary())], schema=COLUMNS).slice(len(pad)))
        first += size
    starts = np.cumsum([0, *SIZES[name]])[:-1].astype(np.int64)
    return Images(made, starts, labels, np.arange(len(labels), dtype=np.int64), side)


def feed(side: int, settings: TrainSpec) -> Feed:
    sets = {name: blocks(name, side) for name in SIZES}
    parts = [Part("real", np.arange(2, 12, dtype=np.int64)), Part("synthetic", np.arange(30, dtype=np.int64))]
    labels = [sets[part.of].labels[part.rows] for part in parts]
    plan = Mixture(labels, settings.batch, 3, share=shares([10, 30], 0.25))
    return Feed(sets, parts, plan, Augment(settings, min(side, 64), 3))


def expected(made: Feed, steps: Sequence[int], part: slice, side: int) -> list[np.ndarray]:
    """Pixels by brute force: the plan's rows looked up one by one."""
    out = []
    for step in steps:
        draw = made.mixture.draw(step)
        rows = [
            (made.parts[s].of, int(made.parts[s].rows[r]))
            for s, r in zip(draw.source[part], draw.row[part], strict=True)
        ]
        out.append(np.stack([pictures(name, side)[row] for name, row in rows]))
    return out


@pytest.mark.parametrize("side", [16, 80])
def test_batches_hold_the_pixels_that_the_plan_drew(side: int) -> None:
    settings = TrainSpec(batch=16)
    made, part = feed(side, settings), slice(4, 12)
    for step, pixels in zip(range(6), expected(made, range(6), part, side), strict=True):
        raw, labels = made.raw(step, part)
        np.testing.assert_array_equal(raw.numpy(), pixels)
        source, row = made.rows(step, part)
        names = [made.parts[number].of for number in source]
        assert labels.tolist() == [int(made.sets[n].labels[r]) for n, r in zip(names, row, strict=True)]


@pytest.mark.parametrize("side", [16, 80])
def test_looking_ahead_and_resuming_change_no_batch(side: int) -> None:
    settings = TrainSpec(batch=8, crop="resized", flip=True, color_jitter=0.4, rand_augment=5)
    made, part = feed(side, settings), slice(0, 8)
    plain = [made.finish(made.raw(step, part), step, part)[0] for step in range(9)]
    loader = Loader(made, part)
    order = [0, 1, 2, 3, 7, 8, 4]  # a resumed training may begin anywhere
    for step in order:
        pixels, labels = loader.batch(step)
        assert torch.equal(pixels, plain[step])
        assert pixels.dtype == torch.uint8
        assert len(labels) == 8
    loader.close()


def test_jpeg_blocks_are_what_pillow_reads() -> None:
    smooth = np.linspace(0, 255, 80 * 80 * 3).reshape(80, 80, 3).astype(np.uint8)
    data = [encode(np.roll(smooth, k, axis=1), "jpg", 95) for k in range(3)]
    columns = [pa.array([0, 0, 0], pa.int64())] * 3
    table = pa.table([*columns, pa.array(data, pa.large_binary())], schema=COLUMNS)
    images = Images([table], np.zeros(1, np.int64), np.zeros(3, np.int64), np.arange(3), 80)
    rows = np.array([2, 0], np.int64)
    for own, k in zip(images.take(rows), rows, strict=True):
        theirs = np.asarray(Image.open(io.BytesIO(data[k])).convert("RGB"))
        assert np.abs(own.astype(int) - theirs.astype(int)).max() <= 2
