"""The 9,298 USPS handwritten digits of 16 x 16 pixels in a MATLAB file: 256 grey values row by row and the digit plus
one."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.errors import DataError, StorageError
from engine.images.sources.arrays import ArraySet, Labels, Pixels
from engine.images.sources.source import Root, open_file
from engine.spec.recipe import ImagesSpec, UspsSource
from engine.storage.paths import place_of

WHERE = "source.path"
FIX = "use usps_all.mat with the table usps_all of 257 columns"
SIDE = 16
MAX_VALUES = 1 << 24  # seven times as many as the set has


def _read(path: Root) -> np.ndarray:
    """(N, 257) uint8 as the file has it; raises DataError."""
    from scipy.io import loadmat, whosmat

    try:
        with open_file(path) as file:
            shapes = {name: shape for name, shape, _ in whosmat(file)}
            if math.prod(shapes.get("usps_all", ())) > MAX_VALUES:
                raise DataError(WHERE, f"usps_all in {path} has the shape {shapes['usps_all']}", FIX)
            file.seek(0)
            table = loadmat(file, variable_names=["usps_all"]).get("usps_all")
    except FileNotFoundError:
        raise DataError(WHERE, f"{path} does not exist", FIX) from None
    except (DataError, StorageError):
        raise
    except Exception as error:  # scipy raises whatever a broken byte leads it to
        raise DataError(WHERE, f"{path} is no readable .mat file ({_first(error)})", FIX) from None
    if table is None:
        raise DataError(WHERE, f"{path} holds no usps_all", FIX)
    if table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != SIDE * SIDE + 1 or not len(table):
        raise DataError(WHERE, f"usps_all in {path} has the shape {table.shape} of {table.dtype}", FIX)
    if table[:, -1].min() < 1 or table[:, -1].max() > 10:
        raise DataError(WHERE, f"the last column of usps_all in {path} is not 1 to 10", FIX)
    return np.asarray(table)


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class Usps(ArraySet):
    """Grey values 0..255, dark background; label 1 is the digit 0."""

    class_names: tuple[str, ...] | None = tuple("0123456789")

    def __init__(self, name: str, path: Root) -> None:
        super().__init__(name)
        self.path = path

    @cached_property
    def _table(self) -> np.ndarray:
        return _read(self.path)

    def __reduce__(self) -> tuple[type[Usps], tuple[str, Root]]:
        return Usps, (self.name, self.path)

    def check(self) -> None:
        """Raises DataError where the file is not that table, StorageError where it is refused; reads it anew."""
        self.__dict__["_table"] = _read(self.path)

    def load_labels(self) -> Labels:
        return self._table[:, -1].astype(np.int64) - 1

    def load_pixels(self) -> Pixels:
        return self._table[:, :-1].reshape(-1, SIDE, SIDE)


def open_sets(source: UspsSource, images: ImagesSpec, *, download: bool) -> dict[str, Usps]:
    """The one set that there is."""
    given = place_of(source.path)
    return {"": Usps("usps", given.absolute() if isinstance(given, Path) else given)}
