"""USPS against the published class counts, and files that are not that table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from engine.errors import DataError
from engine.images.decode import decode
from engine.images.sources import open_sets
from engine.spec.recipe import ImagesSpec, UspsSource

IMAGES = ImagesSpec(size=16)
COUNTS = [1553, 1269, 929, 824, 852, 716, 834, 792, 708, 821]  # of the digits 0 to 9 in the whole set of 9,298


def test_the_real_file(shared_data: Path) -> None:
    path = shared_data / "usps/usps_all.mat"
    source = open_sets(UspsSource(kind="usps", path=str(path)), IMAGES)[""]
    source.check()
    refs = [ref for group in source.scan() for ref in group]
    assert np.bincount([ref.label for ref in refs]).tolist() == COUNTS
    raw = loadmat(path)["usps_all"]
    for i in (0, 4000, 9297):
        ((_, data),) = source.read([refs[i].place])
        pixels = decode(data, IMAGES).pixels
        assert np.array_equal(pixels[..., 1], raw[i, :256].reshape(16, 16))
        assert refs[i].label == raw[i, 256] - 1


def test_digits_stand_upright(shared_data: Path) -> None:
    source = open_sets(UspsSource(kind="usps", path=str(shared_data / "usps/usps_all.mat")), IMAGES)[""]
    pixels, labels = source.load_pixels().astype(float), source.load_labels()
    seven, one = pixels[labels == 7].mean(0), pixels[labels == 1].mean(0)
    assert seven[:8].sum() > 1.15 * seven[8:].sum()  # the bar of a seven is at its top
    assert one.sum(1).std() < one.sum(0).std()  # a one is a vertical bar


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": np.zeros((2, 257), np.uint8)}, "holds no usps_all"),
        ({"usps_all": np.zeros((2, 256), np.uint8)}, r"shape \(2, 256\) of uint8"),
        ({"usps_all": np.ones((2, 257), float)}, "of float64"),
        ({"usps_all": np.zeros((2, 257), np.uint8)}, "is not 1 to 10"),
        (b"no matlab", "is no readable .mat file"),
        (None, "does not exist"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "x.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        savemat(path, content)
    with pytest.raises(DataError, match=message) as caught:
        open_sets(UspsSource(kind="usps", path=str(path)), IMAGES)[""].check()
    assert "\n" not in str(caught.value)
