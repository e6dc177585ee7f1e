"""Near-duplicates against brute force over all pairs, SciPy's transform as imagehash uses it, and sets whose images are
alike by nature."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fftpack import dct
from sklearn.datasets import load_digits

from engine.images import similar
from tests.support.images import picture

RNG = np.random.default_rng(2)


def prints(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    return similar.fingerprints([similar.thumbnail(image, image.tobytes()) for image in images])


def pictures(count: int, width: int = 40, height: int = 48) -> list[Image.Image]:
    return [Image.fromarray(picture(RNG, width, height)) for _ in range(count)]


def phash(grey: np.ndarray) -> np.ndarray:
    """The bits of `imagehash.phash(image, highfreq_factor=2)`, whose code this is, for (16, 16) grey values."""
    low = dct(dct(grey.astype(float), axis=0), axis=1)[:8, :8]
    return (low > np.median(low)).ravel()


@pytest.mark.parametrize("side", [8, 16, 32, 64, 100])
def test_the_hash_is_phash(side: int) -> None:
    images = pictures(30, side, side)
    hashes, own = prints(images)
    for image, value, row in zip(images, hashes, own, strict=True):
        thumbnail = np.asarray(image.resize((16, 16), Image.Resampling.BOX), float)
        grey = row[:256].reshape(16, 16)
        assert np.abs(grey - thumbnail @ [0.299, 0.587, 0.114]).max() <= 2
        assert np.array_equal(np.unpackbits(np.array([value]).view(np.uint8)), phash(grey))


def test_prints_do_not_depend_on_what_else_is_inspected() -> None:
    images = pictures(6, 32, 32) + pictures(6) + pictures(3, 64, 32)
    hashes, own = prints(images)
    for i, image in enumerate(images):
        alone = prints([image])
        assert (alone[0][0], alone[1].tobytes()) == (hashes[i], own[i].tobytes())


def changed(image: Image.Image) -> list[Image.Image]:
    """Copies of a picture as they come about: another size, quality and brightness."""
    return [
        image.resize((33, 41)),
        ImageEnhance.Brightness(image).enhance(0.85),
        Image.fromarray(np.clip(np.asarray(image, int) + RNG.integers(-6, 7, (48, 40, 3)), 0, 255).astype(np.uint8)),
    ]


def test_copies_are_found_and_others_are_not() -> None:
    originals = pictures(400)
    copies = [copy for image in originals[:20] for copy in changed(image)]
    hashes, own = prints(originals + copies)
    found = similar.find(hashes, own, np.zeros(len(hashes), np.int32))
    together = found.group[400:] == found.group[:20].repeat(3)
    assert (together & (found.group[400:] >= 0)).mean() >= 0.95
    assert (found.group[20:400] == -1).all()
    assert len(set(found.group[:20].tolist())) == 20


def test_pairs_are_those_of_a_brute_force() -> None:
    originals = pictures(150)
    hashes, own = prints(originals + [copy for image in originals[:40] for copy in changed(image)])
    labels = np.arange(len(hashes)) // 5  # too few of a class to tell what its images have by nature
    grey, colour = own[:, :256].astype(float), own[:, 256:].astype(float)
    close, tinted = np.corrcoef(grey), np.corrcoef(colour)
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(int)
    apart = (bits[:, None] != bits[None]).sum(-1)
    expected = np.argwhere(np.triu((close > 0.95) & (tinted > 0.5) & (apart <= similar.RADIUS), 1))
    found = similar.find(hashes, own, labels)
    assert np.array_equal(np.stack([found.first, found.second], 1), expected)
    assert np.allclose(found.correlation, close[found.first, found.second], atol=1e-5)


def test_another_colour_is_another_picture() -> None:
    disc = np.hypot(*np.mgrid[-12:12, -12:12]) < 7
    images = [Image.fromarray(np.where(disc[..., None], c, 255).astype(np.uint8)) for c in ([200, 0, 0], [0, 0, 255])]
    hashes, own = prints(images)
    assert (similar.find(hashes, own, np.zeros(2, np.int32)).group == -1).all()


def test_handwritten_digits_of_one_class_are_alike_and_no_duplicates() -> None:
    digits = load_digits()
    levels = np.repeat(np.floor(digits.images * 255 / 16 + 0.5).astype(np.uint8)[..., None], 3, -1)
    hashes, own = prints([Image.fromarray(image) for image in levels])
    close = np.corrcoef(own[:, :256].astype(float))
    assert (np.triu(close, 1) > 0.95).sum() > 1000
    assert (similar.find(hashes, own, digits.target).group == -1).all()


def test_flat_images_and_small_sets_are_no_fault() -> None:
    for count in (0, 1, 3):
        hashes, own = prints([Image.new("RGB", (20, 20), (level, 10, 10)) for level in range(count)])
        assert (similar.find(hashes, own, np.zeros(count, np.int32)).group == -1).all()
