"""The 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn embeds: no download, no path."""

from __future__ import annotations

import gzip
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ConfigError
from engine.images.decode import BadImage
from engine.images.sources.source import GROUP, Place, Ref, Rejected
from engine.spec.recipe import DigitsSource, ImagesSpec

DATA = "datasets/data/digits.csv.gz"


def _load() -> NDArray[np.int64]:
    """(1797, 65) integers: 64 grey values 0..16 and the label.

    Reads scikit-learn's file itself, because importing scikit-learn takes two seconds.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("source.kind", "digits needs scikit-learn", "pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / DATA
    if not path.is_file():
        from sklearn.datasets import load_digits

        data, target = load_digits(return_X_y=True)
        return np.column_stack([data, target]).astype(np.int64)
    with gzip.open(path, "rt") as file:
        return np.array([line.split(",") for line in file.read().split()], dtype=np.float64).astype(np.int64)


class Digits:
    """Grey values 0..16 become round(v * 255 / 16); an image's bytes are an uncompressed BMP, the same on every
    machine."""

    class_names: tuple[str, ...] | None = tuple("0123456789")
    skipped: Mapping[str, int] = MappingProxyType({})

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return _load()

    def __reduce__(self) -> tuple[type[Digits], tuple[()]]:
        return Digits, ()

    def check(self) -> None:
        """The set is complete by nature; raises ConfigError without scikit-learn."""
        if importlib.util.find_spec("sklearn") is None:
            raise ConfigError("source.kind", "digits needs scikit-learn", "pip install scikit-learn")

    def size(self) -> int:
        """All of them."""
        return len(self._rows)

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        labels = self._rows[:, 64].tolist()
        refs = [Ref(f"digits/{i:04d}", label, Place("digits", row=i)) for i, label in enumerate(labels)]
        for start in range(0, len(refs), GROUP):
            yield refs[start : start + GROUP]

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        for position, place in enumerate(places):
            grey = np.rint(self._rows[place.row, :64].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grey).save(buffer, "BMP")
            yield position, buffer.getvalue()


def open_sets(source: DigitsSource, images: ImagesSpec, *, download: bool) -> dict[str, Digits]:
    """The one set that there is."""
    return {"": Digits()}
