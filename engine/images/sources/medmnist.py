"""A MedMNIST .npz: arrays of images and one label each, in the parts train, val and test."""

from __future__ import annotations

import math
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from engine.errors import DataError
from engine.images.labels import MAX_CLASSES
from engine.images.sources.arrays import ArraySet, Labels, Pixels
from engine.images.sources.source import Root, open_file
from engine.spec.recipe import ImagesSpec, MedMnistSource
from engine.storage.paths import place_of

WHERE = "source.path"
FIX = "use a 2-D MedMNIST .npz, with train_images, train_labels, val_*, test_*"
MAX_BYTES = 4 << 30  # a member is held whole by each process that reads it
MIN_PIXELS = 64  # of an image: `decode` takes no smaller one
MAX_HEADER = 1 << 16  # bytes before an array's numbers
LARGE, RATIO = 1 << 28, 100  # bytes from which an array that packs so well is no set of images
BROKEN = (OSError, EOFError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def _first(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _header(path: Root, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a member, without its numbers; DataError where there is none, or where its size cannot be
    true."""
    try:
        with open_file(path) as whole, zipfile.ZipFile(whole) as archive:
            entry = archive.getinfo(f"{member}.npy")
            _check_size(path, member, entry)
            with archive.open(entry) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
    except FileNotFoundError:
        raise DataError(WHERE, f"{path} does not exist", FIX) from None
    except KeyError:
        raise DataError(WHERE, f"{path} has no array {member}", FIX) from None
    except BROKEN as error:
        raise DataError(WHERE, f"{path} is no readable .npz ({_first(error)})", FIX) from None
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or (not dtype.hasobject and not size <= entry.file_size <= size + MAX_HEADER):
        what = f"{member} in {path} has the shape {shape} of {dtype}, which does not fit its {entry.file_size:,} bytes"
        raise DataError(WHERE, what, FIX)
    return shape, dtype


def _check_size(path: Root, member: str, entry: zipfile.ZipInfo) -> None:
    packed, size = entry.compress_size, entry.file_size
    if size > LARGE and size > RATIO * packed:
        raise DataError(WHERE, f"{member} in {path} has {packed:,} bytes that unpack to {size:,}", FIX)
    if size > MAX_BYTES + MAX_HEADER:
        fix = "write it as Parquet or WebDataset, which are read piece by piece"
        raise DataError(WHERE, f"{member} in {path} has {size:,} bytes, more than {MAX_BYTES >> 30} GiB", fix)


@cache
def _member(path: Root, member: str) -> np.ndarray:
    try:
        with open_file(path) as whole, np.load(whole, allow_pickle=False) as file:
            return np.asarray(file[member])
    except BROKEN as error:
        raise DataError(WHERE, f"{member} in {path} cannot be read ({_first(error)})", FIX) from None


def _check_images(path: Root, part: str) -> int:
    """How many images a part has, with the faults of its pixels; reads no pixel."""
    shape, dtype = _header(path, f"{part}_images")
    told = f"{part}_images in {path} has the shape {shape} of {dtype}"
    if len(shape) > 4 or (len(shape) == 4 and shape[-1] != 3):
        raise DataError(WHERE, f"{told}, which are volumes", FIX)
    if dtype != np.uint8 or len(shape) < 3 or shape[1] * shape[2] < MIN_PIXELS:
        raise DataError(WHERE, told, FIX)
    return shape[0]


def _labels(path: Root, part: str) -> Labels:
    """(N,) class numbers of a part; DataError where an image has several labels or none."""
    shape, dtype = _header(path, f"{part}_labels")
    told = f"{part}_labels in {path} has the shape {shape} of {dtype}"
    if len(shape) == 2 and shape[1] > 1:
        raise DataError(WHERE, f"{told}: several labels an image", "use a set with one label an image")
    if len(shape) not in (1, 2) or dtype.kind not in "iu":
        raise DataError(WHERE, told, FIX)
    if (images := _check_images(path, part)) != shape[0]:
        raise DataError(WHERE, f"{path} has {images} {part}_images and {shape[0]} {part}_labels", FIX)
    labels = _member(path, f"{part}_labels").reshape(-1).astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(WHERE, f"{part}_labels in {path} has a negative label", FIX)
    return labels


class MedMnist(ArraySet):
    """The parts of a file one after the other; labels are class numbers."""

    def __init__(self, name: str, path: Root, parts: tuple[str, ...], class_names: tuple[str, ...] | None) -> None:
        super().__init__(name)
        self.path, self.parts = path, parts
        self.class_names = class_names

    def check(self) -> None:
        """Shapes, types and labels; raises DataError."""
        labels = self.load_labels()
        if not len(labels):
            raise DataError(WHERE, f"{self.path} has no image in {' and '.join(self.parts)}", FIX)
        names = self.class_names
        if names is not None and int(labels.max()) >= len(names):
            what = f"{self.path} has the label {int(labels.max())}, source.class_names has {len(names)} names"
            raise DataError("source.class_names", what, "name every class, in the order of the labels")

    def load_labels(self) -> Labels:
        return np.concatenate([_labels(self.path, part) for part in self.parts])

    def load_pixels(self) -> Pixels:
        for part in self.parts:
            _check_images(self.path, part)
        arrays = [_member(self.path, f"{part}_images") for part in self.parts]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise DataError(WHERE, f"the parts of {self.path} have images of different shapes", FIX)
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def open_sets(source: MedMnistSource, images: ImagesSpec, *, download: bool) -> dict[str, MedMnist]:
    """Train and val together are the main set, test is the test set; classes are numbered from 0 over all of them."""
    given = place_of(source.path)
    path = given.absolute() if isinstance(given, Path) else given
    names = source.class_names
    if names is None:
        most = max(int(_labels(path, part).max(initial=0)) for part in ("train", "val", "test"))
        if most >= MAX_CLASSES:
            raise DataError(WHERE, f"{path} has the label {most}", FIX)
        names = tuple(str(i) for i in range(most + 1))
    return {
        "": MedMnist("main", path, ("train", "val"), names),
        "test": MedMnist("test", path, ("test",), names),
    }
