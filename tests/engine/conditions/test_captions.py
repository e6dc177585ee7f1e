"""Captions by moments: known shapes, invariances, and cuts that come from the training images only."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from engine.conditions import captions
from engine.conditions.captions import STRATEGIES, fit_terciles, moments
from engine.spec.recipe import CaptionSpec
from tests.support.captions import said_of

MOMENTS = CaptionSpec(kind="moments")


def line(x_top: float, x_bottom: float, width: int, size: int = 96) -> np.ndarray:
    """A white stroke on black from the top to the bottom of the picture's middle part."""
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).line([(x_top, 0.2 * size), (x_bottom, 0.8 * size)], fill=255, width=width)
    return np.asarray(image)


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images / 16 * 255).round().astype(np.uint8)


def test_moments_equal_those_of_brute_force() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    border = [*image[0], *image[-1], *image[1:-1, 0], *image[1:-1, -1]]
    mass = x1 = y1 = x2 = y2 = xy = 0.0
    for i in range(5):
        for j in range(7):
            ink = abs(float(image[i, j]) - float(np.median(border))) / 255
            mass += ink
            x1 += ink * j
            y1 += ink * i
            x2 += ink * j * j
            y2 += ink * i * i
            xy += ink * i * j
    var_x = x2 / mass - (x1 / mass) ** 2 + 1 / 12
    var_y = y2 / mass - (y1 / mass) ** 2 + 1 / 12
    cov = xy / mass - x1 * y1 / mass**2
    expected = [mass / np.sqrt(var_x + var_y) / np.sqrt(35), np.sqrt(var_x / 35), -cov / var_y]
    np.testing.assert_allclose(moments(image[None])[0], expected, rtol=1e-12)


def test_weight_measures_the_stroke() -> None:
    thin, bold = moments(np.stack([line(48, 48, 4), line(48, 48, 12)]))[:, 0]
    assert bold / thin == pytest.approx(3, rel=0.05)
    assert thin * 96 == pytest.approx(4 * np.sqrt(12), rel=0.1)


def test_slant_is_the_shear_and_right_is_positive() -> None:
    right, upright, left = moments(np.stack([line(60, 36, 5), line(48, 48, 5), line(36, 60, 5)]))[:, 2]
    assert right == pytest.approx(24 / (0.6 * 96), rel=0.05)
    assert left == pytest.approx(-right, rel=0.05)
    assert upright == pytest.approx(0, abs=1e-9)


def test_size_polarity_and_colour_do_not_matter() -> None:
    images = digits()[:50]
    facts = moments(images)
    large = images.repeat(7, axis=1).repeat(7, axis=2)
    np.testing.assert_allclose(moments(large), facts, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments(255 - images), facts, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments(np.stack([images] * 3, axis=-1)), facts, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments(images[..., None]), facts, rtol=1e-12)


def test_mirrored_digits_slant_the_other_way() -> None:
    images = digits()[:50]
    facts, mirrored = moments(images), moments(images[:, :, ::-1])
    np.testing.assert_allclose(mirrored[:, 2], -facts[:, 2], atol=1e-12)
    np.testing.assert_allclose(mirrored[:, :2], facts[:, :2], rtol=1e-12)


def test_dilated_digits_are_bolder() -> None:
    images = np.pad(digits()[:50], ((0, 0), (2, 2), (2, 2)))
    grown = np.stack([ndimage.grey_dilation(image, size=(2, 2)) for image in images])
    assert (moments(grown)[:, 0] > moments(images)[:, 0]).all()


@given(value=st.integers(0, 255), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_even_images_have_no_ink(value: int, height: int, width: int) -> None:
    assert (moments(np.full((2, height, width, 3), value, np.uint8)) == 0).all()


def test_terciles_part_the_training_images_in_thirds() -> None:
    images = digits()
    said = said_of(MOMENTS, fit_terciles(moments(images)), images)
    for choices in captions.WORDS.values():
        counts = [sum(word in text for text in said) for word in choices]
        assert sum(counts) == len(images)
        assert max(counts) - min(counts) <= 0.02 * len(images)
    assert all(len(text.split()) in (3, 4) for text in said)


def test_cuts_are_applied_again_to_other_images() -> None:
    images = digits()
    fitted = json.loads(json.dumps(fit_terciles(moments(images[:300]))))
    later = said_of(MOMENTS, fitted, images[300:])
    facts = moments(images[300:])
    low, high = np.quantile(moments(images[:300])[:, 1], [1 / 3, 2 / 3])
    expected = np.where(facts[:, 1] < low, "narrow", np.where(facts[:, 1] > high, "wide", "medium"))
    assert [text.split()[1] for text in later] == expected.tolist()
    assert said_of(MOMENTS, fitted, images[300:350]) == later[:50]


def test_extremes_are_named_as_seen() -> None:
    images = np.stack([line(60, 36, 4), line(48, 48, 8), line(36, 60, 14)])
    said = said_of(MOMENTS, fit_terciles(moments(images)), images)
    assert [text.split()[0] for text in said] == ["thin", "regular", "bold"]
    assert [" ".join(text.split()[2:]) for text in said] == ["slanted right", "upright", "slanted left"]


def test_equal_images_get_the_middle_words() -> None:
    images = np.stack([line(48, 48, 5)] * 4)
    assert said_of(MOMENTS, fit_terciles(moments(images)), images) == ["regular medium upright"] * 4


def test_class_captions_are_empty_and_look_at_nothing() -> None:
    spec = CaptionSpec(kind="class")
    assert said_of(spec, {}, digits()[:3]) == ["", "", ""]
    assert not STRATEGIES["class"].needs_images
    assert captions.precheck(spec) == []
