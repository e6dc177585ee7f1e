"""Thumbnails and the gallery picture: whole pixels, real above synthetic."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from engine.report.gallery import CELL, HEAD, SIDE, STEP, Picture, Row, data_uri, picture, thumbnail
from tests.support.hostile import HOSTILE


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("side", "shown"), [(8, 64), (28, 84), (32, 64), (64, 64), (100, 100), (512, 128)])
def test_thumbnail_sizes(side: int, shown: int) -> None:
    assert thumbnail(noise(side)).size == (shown, shown)


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    pixels = noise(8)
    assert np.array_equal(np.asarray(thumbnail(pixels)), np.kron(pixels, np.ones((8, 8, 1), np.uint8)))


@pytest.mark.parametrize(("side", "kind"), [(8, "png"), (512, "jpeg")])
def test_data_uris_hold_the_image(side: int, kind: str) -> None:
    uri = data_uri(noise(side))
    assert uri.startswith(f"data:image/{kind};base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == thumbnail(noise(side)).size


def flat(level: int, count: int) -> list[Picture]:
    return [Picture(np.full((8, 8, 3), level, np.uint8), "") for _ in range(count)]


def test_real_stands_above_synthetic() -> None:
    rows = [Row(k, name, flat(10 + k, 2), flat(100 + k, 2)) for k, name in enumerate((*HOSTILE, "x" * 200))]
    with Image.open(io.BytesIO(picture(rows))) as image:
        pixels = np.asarray(image)
    for k in range(len(rows)):
        column = pixels[:, SIDE + k * (CELL + 8) + CELL // 2, 0]
        levels = [int(column[HEAD + j * STEP + CELL // 2]) for j in range(2)]
        levels += [int(column[HEAD + 2 * STEP + 8 + j * STEP + CELL // 2]) for j in range(2)]
        assert levels == [10 + k, 10 + k, 100 + k, 100 + k]


def test_twelve_classes_take_two_bands() -> None:
    one = picture([Row(k, str(k), flat(1, 1), flat(2, 1)) for k in range(10)])
    two = picture([Row(k, str(k), flat(1, 1), flat(2, 1)) for k in range(12)])
    sizes = [Image.open(io.BytesIO(data)).size for data in (one, two)]
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])


def test_without_images_there_is_still_a_picture() -> None:
    assert Image.open(io.BytesIO(picture([Row(0, "a")]))).width > 0
