"""What the judges see: real and synthetic images as arrays, through the same codec, at most 64 pixels a side."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from engine.cluster.progress import Task
from engine.errors import DataError
from engine.images.decode import decode
from engine.images.encode import encode
from engine.images.image_reader import Reader
from engine.shards import manifest
from engine.shards.shard_reader import samples
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training.trainingresults import Codec

if TYPE_CHECKING:
    from engine.training.judge_model import Part

MAX_SIZE = 64
LOSSY = ("jpg", "webp")
CHUNK = 1024

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Arrays:
    """Labelled images: `pixels` (N, size, size, 3) uint8, `labels` (N,) int64, `index` (N,) int64 rising (plan index or
    row)."""

    pixels: Pixels
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def below(self, index: int) -> Arrays:
        """The images whose index is smaller; quarantined samples leave gaps, so they may be fewer than `index`."""
        stop = int(np.searchsorted(self.index, index))
        return Arrays(self.pixels[:stop], self.labels[:stop], self.index[:stop])

    def part(self) -> Part:
        """The same as tensors."""
        import torch

        from engine.training.judge_model import Part

        return Part(torch.tensor(self.pixels), torch.tensor(self.labels))


def resolution(spec: RunSpec) -> int:
    """The side of the images that a judge sees; larger ones are averaged down to it."""
    return min(spec.images.size, MAX_SIZE)


def codec(spec: RunSpec) -> Codec:
    """How the judges' training images were encoded, real and synthetic alike; test images are read as they come."""
    lossy = spec.generate.format in LOSSY
    return {"format": spec.generate.format, "quality": spec.generate.quality if lossy else None, "lossy": lossy}


def real_images(spec: RunSpec, rows: pa.Table, task: Task, *, same_codec: bool, side: int | None = None) -> Arrays:
    """Read the catalog rows, in order, at `side` (null: the judges'); `same_codec` sends them through the lossy codec
    of the synthetic set, if it has one."""
    reader, side = Reader(spec), side or resolution(spec)
    lossy = same_codec and codec(spec)["lossy"]

    def read(first: int) -> Pixels:
        pixels = reader.pixels(rows.slice(first, CHUNK))
        return shrink(np.stack([through_codec(image, spec) for image in pixels]) if lossy else pixels, side)

    chunks, done = [], task.done
    with ThreadPoolExecutor(_threads()) as pool:
        for chunk in pool.map(read, range(0, rows.num_rows, CHUNK)):
            chunks.append(chunk)
            done += len(chunk)
            task.update(done)
    labels = np.asarray(rows["label"].to_numpy(), dtype=np.int64)
    return Arrays(np.concatenate(chunks), labels, np.arange(len(labels), dtype=np.int64))


def synthetic_images(spec: RunSpec, store: Store, count: int, task: Task, *, side: int | None = None) -> Arrays:
    """Read the samples with index below `count` from the published shards, in index order.

    Every shard is checked against the manifest first. Raises DataError where one is not the sealed one, where a sample
    is not a decodable image of the spec's size, and where none is left.
    """
    rows, side = manifest.load(store).table, side or resolution(spec)
    shards = [k for k, first in zip(rows["index"].to_pylist(), rows["first"].to_pylist(), strict=True) if first < count]
    parts, done = [], task.done
    with ThreadPoolExecutor(_threads()) as pool:
        for part in pool.map(lambda chosen: _read_shards(spec, store, chosen, count, side), _chunks(shards)):
            parts.append(part)
            done += len(part.labels)
            task.update(done)
    if not any(len(part.labels) for part in parts):
        raise DataError(store.url, f"none of the first {count:,} samples is left", "see quarantine.parquet")
    return Arrays(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("pixels", "labels", "index")))


def _chunks(shards: list[int]) -> Iterator[list[int]]:
    size = max(1, -(-len(shards) // (4 * _threads())))
    return (shards[k : k + size] for k in range(0, len(shards), size))


def _read_shards(spec: RunSpec, store: Store, shards: Iterable[int], count: int, side: int) -> Arrays:
    pixels, labels, indices = [], [], []
    for sample in samples(store, shards):
        index = sample.meta.get("index")
        if not isinstance(index, int) or sample.label is None:
            raise DataError(f"{store.url}, sample {sample.key}", "has no index or no label", "restore the shard")
        if index < count:
            pixels.append(shrink(sealed_pixels(sample.image, spec, f"{store.url}, sample {sample.key}")[None], side))
            labels.append(sample.label)
            indices.append(index)
    empty = np.empty((0, side, side, 3), np.uint8)
    return Arrays(np.concatenate([empty, *pixels]), np.asarray(labels, np.int64), np.asarray(indices, np.int64))


def sealed_pixels(data: bytes, spec: RunSpec, where: str) -> Pixels:
    """Pixels of an image whose bytes have been found to be the sealed ones, without the checks that unknown bytes
    need."""
    pixels = np.empty((spec.images.size, spec.images.size, 3), np.uint8)
    try:
        decode_into(memoryview(data), pixels)
    except DataError as error:
        raise DataError(where, error.what, "restore the shard") from None
    return pixels


def decode_into(data: memoryview, out: Pixels) -> None:
    """Decode an image that this engine has encoded into `out` (H, W, 3), contiguous; DataError where it is not of that
    size."""
    try:
        if bytes(data[:2]) == b"\xff\xd8":
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2]:
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        else:
            image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
            width, height = image.size
            if (height, width) == out.shape[:2]:
                out[...] = np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError) as error:  # the last is Pillow's word for a broken PNG
        raise DataError("a stored image", f"cannot be decoded ({str(error).splitlines()[0]})", "run again") from None
    if (height, width) != out.shape[:2]:
        raise DataError("a stored image", f"has {width} x {height} pixels", "restore the shard")


def through_codec(image: Pixels, spec: RunSpec) -> Pixels:
    """An image (H, W, 3) as it comes back from the synthetic set's format and quality."""
    return decode(encode(image, spec.generate.format, spec.generate.quality), spec.images).pixels


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Average (N, H, H, 3) uint8 down to (N, side, side, 3), each output pixel the mean of its area; smaller ones
    stay."""
    if pixels.shape[1] <= side:
        return pixels
    import torch
    from torch.nn import functional

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    small = functional.adaptive_avg_pool2d(images, side).round().to(torch.uint8)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())


def _threads() -> int:
    return min(os.cpu_count() or 1, 16)
