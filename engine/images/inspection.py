"""Looking at real images: a table of places in, a table of facts or reasons out; runs inside Ray tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.images.decode import BadImage, decode
from engine.images.formats import misnamed
from engine.images.listing import Candidate
from engine.images.similar import PRINT_BYTES, fingerprints, thumbnail
from engine.images.sources import ImageSource, Place
from engine.spec.recipe import ImagesSpec

PLACES = pa.schema(
    [
        ("set", pa.string()),
        ("key", pa.string()),
        ("code", pa.int64()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("row", pa.int64()),
    ]
)
FACTS = pa.schema(
    [
        *PLACES,
        ("sha256", pa.string()),
        ("pixels_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("notes", pa.string()),
        ("phash", pa.uint64()),
        ("print", pa.binary(PRINT_BYTES)),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


KEPT = tuple(name for name in PLACES.names if name != "nbytes")


def places_table(candidates: Sequence[Candidate]) -> pa.Table:
    """Candidates as a table with the columns of PLACES."""
    rows = [(c.set, c.key, c.code, c.place.uri, c.place.offset, c.place.size, c.place.row) for c in candidates]
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=PLACES)


def places_of(table: pa.Table) -> list[tuple[str, Place]]:
    """(set, place in that set) of each row; the set is read from the URI's prefix."""
    columns = [table[name].to_pylist() for name in ("uri", "offset", "nbytes", "row")]
    out = []
    for uri, offset, size, row in zip(*columns, strict=True):
        prefix, colon, rest = uri.partition(":")
        out.append((prefix if colon else "", Place(rest if colon else uri, offset, size, row)))
    return out


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of (H, W, 3) uint8 pixels and their shape."""
    return _digest(pixels.shape[0], pixels.shape[1], pixels.tobytes())


def _digest(height: int, width: int, pixels: bytes) -> str:
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(pixels)
    return digest.hexdigest()


class ImageFacts(TypedDict):
    """What is written of an image in FACTS: no more than `nbytes` and why for one that cannot be used."""

    nbytes: int
    reason: str
    detail: str
    sha256: NotRequired[str]
    pixels_sha256: NotRequired[str]
    width: NotRequired[int]
    height: NotRequired[int]
    mode: NotRequired[str]
    format: NotRequired[str]
    notes: NotRequired[str]
    thumbnail: NotRequired[Any]
    phash: NotRequired[int]
    print: NotRequired[bytes]


def inspect(table: pa.Table, sets: Mapping[str, ImageSource], images: ImagesSpec) -> pa.Table:
    """Read and decode every image of a PLACES table; returns FACTS, with `reason` empty for good images."""
    located = places_of(table)
    keys = table["key"].to_pylist()
    facts: dict[int, ImageFacts] = {}
    for name in dict.fromkeys(name for name, _ in located):
        positions = [i for i, (own, _) in enumerate(located) if own == name]
        for within, data in sets[name].read([located[i][1] for i in positions]):
            position = positions[within]
            facts[position] = _facts(keys[position], data, images)
    good = [row for row in facts.values() if not row["reason"]]
    hashes, prints = fingerprints([row["thumbnail"] for row in good])
    for row, phash, own in zip(good, hashes.tolist(), prints, strict=True):
        row |= {"phash": phash, "print": own.tobytes()}
    return _table(table, [facts[i] for i in range(len(located))])


def reasons(table: pa.Table, reason: str, detail: str) -> pa.Table:
    """FACTS for places whose images all failed in one way."""
    return _table(table, [{"nbytes": -1, "reason": reason, "detail": detail}] * table.num_rows)


def _table(table: pa.Table, rows: Sequence[ImageFacts]) -> pa.Table:
    made = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in FACTS if f.name not in KEPT}
    return pa.table([made[name] if name in made else table[name] for name in FACTS.names], schema=FACTS)


def _facts(key: str, data: bytes | BadImage, images: ImagesSpec) -> ImageFacts:
    if isinstance(data, BadImage):
        return {"nbytes": -1, "reason": data.reason, "detail": data.detail}
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data, images)
    except BadImage as bad:
        return {"nbytes": len(data), "sha256": sha256, "reason": bad.reason, "detail": bad.detail}
    notes = [*decoded.notes, misnamed(key.rpartition("/")[2], decoded.format)]
    (width, height), pixels = decoded.image.size, decoded.image.tobytes()
    return {
        "nbytes": len(data),
        "sha256": sha256,
        "pixels_sha256": _digest(height, width, pixels),
        "width": width,
        "height": height,
        "mode": decoded.mode,
        "format": decoded.format,
        "notes": "; ".join(note for note in notes if note),
        "thumbnail": thumbnail(decoded.image, pixels),
        "reason": "",
        "detail": "",
    }
