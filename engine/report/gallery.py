"""Real beside synthetic images of each class: chosen by index alone, as thumbnails for the report and as one
picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.conditions.table import load_captions
from engine.errors import DataError
from engine.images.catalog import Catalog
from engine.images.decode import BadImage, decode
from engine.images.image_reader import Reader
from engine.shards import manifest
from engine.shards.shard_reader import samples
from engine.spec import RunSpec
from engine.storage.store import Store

IMAGES = 6  # a class and side
CLASSES = 20
MAX_SHARDS = 10  # read at most so many for a class that is rare
THUMBNAIL = 128
SMALL = 64  # smaller images are blown up by whole pixels to at least this
CELL = 64  # an image of gallery.png
STEP = CELL + 2
GAP, HEAD, SIDE = 8, 28, 84
BAND = 10  # classes beside each other in gallery.png
REAL, SYNTHETIC, INK, PAPER = "#2563eb", "#c2410c", "#1f2937", "#ffffff"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image (H, W, 3) uint8 and what it was made with or captioned as."""

    pixels: Pixels
    text: str

    @property
    def uri(self) -> str:
        """The thumbnail as a data URI."""
        return data_uri(self.pixels)


@dataclass
class Row:
    """The images of one class; `label` is its number."""

    label: int
    name: str
    real: list[Picture] = field(default_factory=list)
    synthetic: list[Picture] = field(default_factory=list)


def collect(spec: RunSpec, store: Store, catalog: Catalog, labels: Sequence[int], count: int = IMAGES) -> list[Row]:
    """The first `count` training and the first `count` synthetic images of each class of `labels`, in index order.

    Real images are read where the catalog says they lie; `DataError` where they are gone or a shard is not the sealed
    one.
    """
    rows = {label: Row(label, catalog.class_names[label]) for label in labels}
    _add_synthetic(rows, spec, store, count)
    _add_real(rows, spec, store, catalog, count)
    return [rows[label] for label in labels]


def _add_synthetic(rows: dict[int, Row], spec: RunSpec, store: Store, count: int) -> None:
    for k in range(min(manifest.load(store).seal.shards, MAX_SHARDS)):
        if all(len(row.synthetic) >= count for row in rows.values()):
            return
        for sample in samples(store, [k]):
            row = rows.get(sample.label) if sample.label is not None else None
            if row is not None and len(row.synthetic) < count:
                try:
                    pixels = decode(sample.image, spec.images).pixels
                except BadImage as bad:
                    raise DataError(
                        f"sample {sample.key}", f"cannot be decoded ({bad.detail})", "run mimeo verify"
                    ) from None
                row.synthetic.append(
                    Picture(pixels, f"{sample.meta.get('prompt', '')} (sample {sample.meta.get('index', '?')})")
                )


def _add_real(rows: dict[int, Row], spec: RunSpec, store: Store, catalog: Catalog, count: int) -> None:
    train = catalog.split("train")
    labels = train["label"].to_numpy()
    captions = _captions(store)
    reader = Reader(spec)
    for row in rows.values():
        chosen = train.take(pa.array(np.flatnonzero(labels == row.label)[:count]))
        texts = [f"{captions.get(key, '')} ({key})".strip() for key in chosen["key"].to_pylist()]
        row.real += [Picture(image, text) for image, text in zip(reader.pixels(chosen), texts, strict=True)]


def _captions(store: Store) -> dict[str, str]:
    """Caption by key of the training images; empty where the stage has not run."""
    try:
        found = load_captions(store)
    except DataError:
        return {}
    return dict(zip(found.keys, found.captions, strict=True))


def thumbnail(pixels: Pixels) -> Image.Image:
    """Small images enlarged by whole pixels (nearest neighbour), large ones reduced to 128 pixels, others as they
    are."""
    image = Image.fromarray(pixels)
    side = max(image.size)
    if side < SMALL:
        factor = -(-SMALL // side)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if side > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image


def data_uri(pixels: Pixels) -> str:
    """The thumbnail as a data URI: PNG for small images, JPEG for photographs."""
    small, buffer = max(pixels.shape[:2]) <= SMALL, io.BytesIO()
    thumbnail(pixels).save(buffer, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 88}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(rows: Sequence[Row]) -> bytes:
    """A PNG: for each class a column, its real images above its synthetic ones; ten classes beside each other."""
    bands = [rows[k : k + BAND] for k in range(0, len(rows), BAND)]
    per_side = max((len(side) for row in rows for side in (row.real, row.synthetic)), default=0)
    height = HEAD + 2 * per_side * STEP + 3 * GAP
    width = SIDE + min(BAND, max(len(rows), 1)) * (CELL + GAP)
    canvas = Image.new("RGB", (width, max(height * len(bands), HEAD)), PAPER)
    for number, band in enumerate(bands):
        _draw_band(canvas, band, number * height, per_side)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_band(canvas: Image.Image, band: Sequence[Row], top: int, per_side: int) -> None:
    draw, font = ImageDraw.Draw(canvas), _font(13)
    second = top + HEAD + per_side * STEP + GAP
    for y, text, colour in ((top + HEAD, "real", REAL), (second, "synthetic", SYNTHETIC)):
        draw.text((GAP, y + CELL // 2), text, colour, font, anchor="lm")
    for column, row in enumerate(band):
        left = SIDE + column * (CELL + GAP)
        draw.text((left + CELL // 2, top + HEAD // 2), _fitting(row.name, font), INK, font, anchor="mm")
        for y, side in ((top + HEAD, row.real), (second, row.synthetic)):
            for k, image in enumerate(side):
                canvas.paste(_cell(image.pixels), (left, y + k * STEP))


def _cell(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    way = Image.Resampling.NEAREST if max(image.size) < CELL else Image.Resampling.LANCZOS
    return image.resize((CELL, CELL), way)


def _fitting(name: str, font: ImageFont.FreeTypeFont) -> str:
    """The class name on one line, cut to the width of a cell."""
    name = "".join(c if c.isprintable() else " " for c in name)
    if font.getlength(name) <= CELL + GAP:
        return name
    while name and font.getlength(name + "\u2026") > CELL + GAP:
        name = name[:-1]
    return name + "\u2026"


def _font(size: int) -> ImageFont.FreeTypeFont:
    from pathlib import Path

    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
