"""A set that is one array of pixels in memory: what the sources of such files share."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import MimeoError, StorageError
from engine.images.decode import BadImage
from engine.images.sources.source import GROUP, Place, Ref, Rejected

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


class ArraySet(ABC):
    """An image's bytes are an uncompressed BMP of its pixels, the same on every machine; its key is `NAME/ROW`.

    Instances travel without the pixels and load them again where they arrive.
    """

    class_names: tuple[str, ...] | None
    skipped: Mapping[str, int] = MappingProxyType({})

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def check(self) -> None:
        """Find structural faults in well under a second; raises DataError or ConfigError."""

    @abstractmethod
    def load_labels(self) -> Labels:
        """(N,) class numbers."""

    @abstractmethod
    def load_pixels(self) -> Pixels:
        """(N, H, W) grey or (N, H, W, 3) colour."""

    @cached_property
    def _pixels(self) -> Pixels:
        return self.load_pixels()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_pixels"}

    def size(self) -> int:
        """How many rows there are."""
        return len(self.load_labels())

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        """References in the order of the rows."""
        labels = self.load_labels().tolist()
        refs = [Ref(f"{self.name}/{i:07d}", label, Place(self.name, row=i)) for i, label in enumerate(labels)]
        for start in range(0, len(refs), GROUP):
            yield refs[start : start + GROUP]

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        """The images of the rows; all of them unreadable where the file is not what it was."""
        for position, place in enumerate(places):
            try:
                image = self._pixels[place.row]
            except StorageError:  # says nothing of the images
                raise
            except (MimeoError, IndexError) as error:
                yield position, BadImage("unreadable", str(error)[:200])
                continue
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(image)).save(buffer, "BMP")
            yield position, buffer.getvalue()
