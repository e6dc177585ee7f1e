"""JPEGs that lack picture data are bad, whatever mark they end with; whole ones are what Pillow's decoder makes of
them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from engine.images.decode import BadImage, decode
from engine.spec.recipe import ImagesSpec
from tests.support.images import picture, save

SPEC = ImagesSpec(size=32)
RNG = np.random.default_rng(5)
NOISE = Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((192, 192), Image.Resampling.BICUBIC)
END = b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (9, 8)], ids=str)
def test_whole_jpegs_are_as_pillow_decodes_them(size: tuple[int, int], options: dict[str, object]) -> None:
    for image in (Image.fromarray(picture(RNG, *size)), Image.fromarray(picture(RNG, *size)).convert("L")):
        for subsampling in (0, 1, 2):
            data = save(image, "JPEG", quality=88, subsampling=subsampling, **options)
            with Image.open(io.BytesIO(data)) as opened:
                expected = np.asarray(opened.convert("RGB"))
            for tail in (b"", bytes(500) + b"trailing"):
                assert np.array_equal(decode(data + tail, SPEC).pixels, expected)


def _damaged() -> dict[str, bytes]:
    plain, progressive = save(NOISE, "JPEG", quality=92), save(NOISE, "JPEG", quality=92, progressive=True)
    restarts = save(NOISE, "JPEG", quality=92, restart_marker_blocks=8)
    middle, third = len(plain) // 2, len(plain) // 3
    return {
        "half and an end mark": plain[:middle] + END,
        "zeros for the second half": plain[:middle] + bytes(middle),
        "zeros and an end mark": plain[:middle] + bytes(middle) + END,
        "a hole": plain[:middle] + plain[middle + 4096 :],
        "a block of zeros": plain[:third] + bytes(4096) + plain[third + 4096 :],
        "half of the scans": progressive[: len(progressive) // 2],
        "half of the scans and an end mark": progressive[: len(progressive) // 2] + END,
        "two files in one": plain[:middle] + plain,
        "a hole between restarts": restarts[: len(restarts) // 2] + restarts[len(restarts) // 2 + 3000 :],
        "filled with ones": plain[:middle] + b"\xff" * middle,
    }


@pytest.mark.parametrize(("name", "data"), _damaged().items(), ids=list(_damaged()))
def test_damaged_jpegs_are_bad(name: str, data: bytes) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data, SPEC)
    assert caught.value.reason in ("truncated", "undecodable")
    assert "JPEG" in caught.value.detail


def test_only_the_end_mark_may_be_missing() -> None:
    data = save(NOISE, "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened)
    made = decode(data[:-2], SPEC)
    assert np.array_equal(made.pixels, expected)
    assert made.notes == ("no end mark",)
    for lost in (3, 6, 40):
        with pytest.raises(BadImage, match="truncated"):
            decode(data[:-lost], SPEC)
