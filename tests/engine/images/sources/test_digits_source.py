"""The embedded digits against scikit-learn's own loader."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from engine.images.decode import decode
from engine.images.sources import Place, Ref, digits, open_sets
from engine.spec.recipe import DigitsSource, ImagesSpec

IMAGES = ImagesSpec(size=8)


def test_pixels_and_labels_are_scikit_learns() -> None:
    data, target = load_digits(return_X_y=True)
    source = open_sets(DigitsSource(kind="digits"), IMAGES)[""]
    source.check()
    refs = [ref for group in source.scan() for ref in group]
    assert all(isinstance(ref, Ref) for ref in refs)
    assert [ref.label for ref in refs] == target.tolist()
    assert len({ref.key for ref in refs}) == 1797
    read = dict(source.read([ref.place for ref in refs]))
    for i in range(0, 1797, 50):
        expected = np.round(data[i].reshape(8, 8, 1) * 15.9375)
        assert np.abs(decode(read[i], IMAGES).pixels - expected).max() <= 0.5
    assert decode(read[0], IMAGES).pixels.max() > 230


def test_it_travels_small_and_needs_no_scikit_learn_import() -> None:
    source = open_sets(DigitsSource(kind="digits"), IMAGES)[""]
    next(source.scan())
    assert len(pickle.dumps(source)) < 200
    script = (
        "import sys; from engine.images.sources.digits import Digits;"
        "assert len(list(Digits().scan())) == 4; assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_loader_itself_serves_where_the_file_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digits.Digits()._rows
    monkeypatch.setattr(digits, "DATA", "datasets/data/elsewhere.csv.gz")
    assert np.array_equal(digits.Digits()._rows, expected)


def test_read_follows_the_given_order() -> None:
    source = digits.Digits()
    one = dict(source.read([Place("digits", row=5)]))[0]
    assert dict(source.read([Place("digits", row=9), Place("digits", row=5)]))[1] == one
