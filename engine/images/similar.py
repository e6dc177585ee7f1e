"""Near-duplicates: pictures that show the same, found by a perceptual hash and confirmed pixel by pixel on thumbnails.

The hash is pHash with 64 bits: which of the 8 x 8 lowest frequencies of a 16 x 16 grey thumbnail lie above their median
(`imagehash.phash(..., highfreq_factor=2)`, computed here for many images at once). Hashes that are near each other are
found by sorting rotations of the bits and looking a few places ahead (Charikar, 2002): time and memory grow as the
number of images does. A pair counts where the thumbnails' grey values correlate above 0.95, above what `DEVIATIONS`
standard deviations (of Fisher's z) say that two images of the class have by nature, as digits and X-rays do, and where
the colours go together too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

SIDE, COARSE = 16, 4
PRINT_BYTES = (
    SIDE * SIDE + COARSE * COARSE * 3
)  # grey values of the thumbnail, then its colours at a quarter of the side
RADIUS = 8  # bits of 64 that may differ
ROTATIONS, AHEAD = 16, 8
CORRELATION, COLOUR_CORRELATION = 0.95, 0.5
DEVIATIONS, SAMPLE, ENOUGH = 5.5, 128, 8  # images of a class that are compared to know it, and the least that tell
FEW = 64 * 64  # pixels
FLAT = 2.0  # grey levels: the standard deviation of a thumbnail that shows nothing
BLOCK = 1 << 15
GREY = np.array([0.299, 0.587, 0.114], np.float32)
SCRAMBLE = np.random.default_rng(0).permutation(64)  # so that each run of bits holds high and low frequencies

Ints = NDArray[np.int64]
Prints = NDArray[np.uint8]
Thumbnail = tuple[tuple[int, int], bytes]


@dataclass(frozen=True)
class Similar:
    """Pairs of near-duplicates among N images (`first` < `second`), and the group (N,) of each image, -1 for one on its
    own."""

    first: Ints
    second: Ints
    correlation: NDArray[np.float64]
    group: Ints


def thumbnail(image: Image.Image, pixels: bytes) -> Thumbnail:
    """What stands for an RGB image with these pixels until `fingerprints`: means of areas, or the pixels themselves if
    they are few."""
    width, height = image.size
    if width % SIDE == height % SIDE == 0 and width * height <= FEW:
        return image.size, pixels
    return (SIDE, SIDE), image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=4.0).tobytes()


def _areas(thumbnails: Sequence[Thumbnail]) -> NDArray[np.float32]:
    """(N, SIDE, SIDE, 3) levels, rounded."""
    out = np.empty((len(thumbnails), SIDE, SIDE, 3), np.float32)
    sizes = [size for size, _ in thumbnails]
    for width, height in set(sizes):
        rows = [i for i, size in enumerate(sizes) if size == (width, height)]
        flat = np.frombuffer(b"".join(thumbnails[i][1] for i in rows), np.uint8)
        lines = flat.reshape(-1, SIDE, height // SIDE, width * 3).sum(2, dtype=np.uint16)
        sums = lines.reshape(-1, SIDE, SIDE, width // SIDE, 3).sum(3, dtype=np.uint16)
        out[rows] = np.floor(sums / np.float32(width * height / SIDE**2) + np.float32(0.5))
    return out


def fingerprints(thumbnails: Sequence[Thumbnail]) -> tuple[NDArray[np.uint64], Prints]:
    """The hashes (N,) and the prints (N, PRINT_BYTES) of thumbnails."""
    from scipy.fft import dct

    rgb = _areas(thumbnails)
    grey = np.floor(rgb @ GREY + np.float32(0.5)).astype(np.uint8)
    basis = dct(np.eye(SIDE), axis=0)[:8]
    low = (basis @ grey.astype(float) @ basis.T).reshape(-1, 64)
    middle = np.partition(low, (31, 32), axis=1)[:, 31:33].mean(1, keepdims=True)  # the median
    hashes = np.packbits(low > middle, axis=1).view(np.uint64)[:, 0]
    step = SIDE // COARSE
    coarse = rgb.reshape(-1, COARSE, step, COARSE, step * 3).sum(2).reshape(-1, COARSE, COARSE, step, 3).sum(3)
    colours = np.floor(coarse / step**2 + 0.5).astype(np.uint8)
    return hashes, np.concatenate([grey.reshape(-1, SIDE * SIDE), colours.reshape(-1, COARSE * COARSE * 3)], 1)


def prints_of(column: pa.ChunkedArray) -> Prints:
    """The prints (N, PRINT_BYTES) of a column of fixed-size binary without nulls."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * PRINT_BYTES, chunk.offset * PRINT_BYTES)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, PRINT_BYTES)


def find(hashes: NDArray[np.uint64], prints: Prints, labels: NDArray[Any]) -> Similar:
    """Near-duplicates among N images with hashes (N,), prints (N, PRINT_BYTES) and class numbers (N,)."""
    first, second = _candidates(hashes)
    kept, correlation = [], []
    for start in range(0, len(first), BLOCK):
        block = slice(start, start + BLOCK)
        values = _correlation(prints, first[block], second[block])
        near = np.flatnonzero(values > CORRELATION)
        kept.append(near + start)
        correlation.append(values[near])
    rows, found = np.concatenate([np.empty(0, np.int64), *kept]), np.concatenate([np.empty(0), *correlation])
    first, second = first[rows], second[rows]
    by_nature = _by_nature(prints, labels, np.unique(labels[np.concatenate([first, second])]))
    sure = [c > max(by_nature[a], by_nature[b]) for c, a, b in zip(found, labels[first], labels[second], strict=True)]
    true = np.array(sure, bool)
    return Similar(first[true], second[true], found[true], _groups(first[true], second[true], len(hashes)))


def _candidates(hashes: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """Pairs whose hashes differ in at most RADIUS bits, but for the few that no rotation brings near each other."""
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1)[:, SCRAMBLE]
    scrambled = np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")[:, 0].astype(np.uint64)
    pairs: Ints = np.empty(0, np.int64)
    for turn in range(0, 64, 64 // ROTATIONS):
        turned = scrambled << np.uint64(turn) | scrambled >> np.uint64(64 - turn) if turn else scrambled
        order = np.argsort(turned, kind="stable")
        ordered = turned[order]
        found = [pairs]
        for ahead in range(1, min(AHEAD + 1, len(order))):
            near = np.flatnonzero(np.bitwise_count(ordered[:-ahead] ^ ordered[ahead:]) <= RADIUS)
            one, other = order[near], order[near + ahead]
            found.append(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
        pairs = np.unique(np.concatenate(found))
    return pairs // max(1, len(hashes)), pairs % max(1, len(hashes))


def _units(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows less their mean, of length 1; a flat row is zeros, so that it correlates with nothing."""
    centred = values.astype(np.float32) - values.mean(1, dtype=np.float32, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > FLAT * np.sqrt(values.shape[1]), centred / np.maximum(length, 1e-6), 0)


def _correlation(prints: Prints, first: Ints, second: Ints) -> NDArray[np.float64]:
    """The grey correlation of each pair; -1 where the colours do not go together."""
    cut = SIDE * SIDE
    grey, colour = (
        (_units(prints[first, part]) * _units(prints[second, part])).sum(1, dtype=np.float64)
        for part in (slice(cut), slice(cut, None))
    )
    return np.where(colour > COLOUR_CORRELATION, grey, -1.0)


def _by_nature(prints: Prints, labels: NDArray[Any], classes: Ints) -> dict[int, float]:
    """For each class the correlation that no two images of it have by chance, from the spread among a sample of them.

    Median and median absolute deviation are used, so that duplicates in the sample do not count.
    """
    out = {}
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], classes), np.searchsorted(labels[order], classes, "right")
    for label, low, high in zip(classes.tolist(), *starts, strict=True):
        rows = order[low + np.unique(np.linspace(0, high - low - 1, SAMPLE).astype(np.int64))]
        out[label] = CORRELATION
        if len(rows) >= ENOUGH:
            units = _units(prints[rows, : SIDE * SIDE])
            z = np.arctanh(np.clip((units @ units.T)[np.triu_indices(len(rows), 1)], -0.9999, 0.9999))
            middle = np.median(z)
            spread = 1.4826 * np.median(np.abs(z - middle))
            out[label] = max(CORRELATION, float(np.tanh(middle + DEVIATIONS * spread)))
    return out


def _groups(first: Ints, second: Ints, count: int) -> Ints:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, group = connected_components(links, directed=False)
    alone = np.ones(count, bool)
    alone[first] = alone[second] = False
    return np.where(alone, -1, group).astype(np.int64)
