"""Pixels of catalogued images, read again from where they lie and checked against the catalog."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.errors import DataError
from engine.images.decode import BadImage, decode, fit
from engine.images.inspection import places_of
from engine.images.sources import open_sets
from engine.spec import RunSpec


class Reader:
    """Opens the source of a run; holds no open file, so that it may be sent to a worker or made there."""

    def __init__(self, spec: RunSpec) -> None:
        self._images = spec.images
        self._sets = open_sets(spec.source, spec.images)

    def pixels(self, rows: pa.Table) -> NDArray[np.uint8]:
        """(N, size, size, 3) uint8 sRGB pixels of N catalog rows, in their order; each file or row group is read once.

        Raises DataError when an image is gone or is no longer the one that was catalogued.
        """
        size = self._images.size
        out = np.empty((rows.num_rows, size, size, 3), np.uint8)
        located = places_of(rows)
        keys, digests = rows["key"].to_pylist(), rows["sha256"].to_pylist()
        for name in dict.fromkeys(name for name, _ in located):
            positions = [i for i, (own, _) in enumerate(located) if own == name]
            for within, data in self._sets[name].read([located[i][1] for i in positions]):
                position = positions[within]
                out[position] = self._one(keys[position], digests[position], data)
        return out

    def _one(self, key: str, digest: str, data: bytes | BadImage) -> NDArray[np.uint8]:
        fix = "put the original back, or start a new output"
        if isinstance(data, BadImage):
            raise DataError(key, f"cannot be read any more ({data.reason}: {data.detail})", fix)
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError(key, "has changed since it was catalogued", fix)
        try:
            return fit(decode(data, self._images).pixels, self._images)
        except BadImage as bad:
            raise DataError(key, f"cannot be decoded any more ({bad.reason}: {bad.detail})", fix) from None
