"""MedMNIST files: the real PneumoniaMNIST, a small colour one, and broken ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.errors import MimeoError
from engine.images.decode import decode
from engine.images.sources import open_sets
from engine.spec.recipe import ImagesSpec, MedMnistSource

IMAGES = ImagesSpec(size=32)
RNG = np.random.default_rng(0)


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for part, n in (("train", 6), ("val", 3), ("test", 4)):
        made[f"{part}_images"] = RNG.integers(0, 256, (n, 28, 28, 3), np.uint8)
        made[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8).reshape(n, 1)
    made |= {key: value for key, value in changes.items() if value is not None}
    return {key: value for key, value in made.items() if key not in changes or changes[key] is not None}


def opened(path: Path, **more: object) -> dict:
    sets = dict(open_sets(MedMnistSource(kind="medmnist", path=str(path), **more), IMAGES))
    for source in sets.values():
        source.check()
    return sets


def images_of(source: object) -> tuple[np.ndarray, list[int]]:
    refs = [ref for group in source.scan() for ref in group]
    read = dict(source.read([ref.place for ref in refs]))
    return np.stack([decode(read[i], IMAGES).pixels for i in range(len(refs))]), [ref.label for ref in refs]


def test_the_real_pneumonia_set(shared_data: Path) -> None:
    path = shared_data / "pneumoniamnist/pneumoniamnist.npz"
    sets = opened(path, class_names=("normal", "pneumonia"))
    main, test = (sum(len(group) for group in sets[name].scan()) for name in ("", "test"))
    assert (main, test) == (3882 + 524, 624)
    with np.load(path) as file:
        pixels, labels = images_of(sets["test"])
        assert np.array_equal(pixels, np.repeat(file["test_images"][..., None], 3, 3))
        assert labels == file["test_labels"].reshape(-1).tolist()


def test_train_and_val_are_the_main_set_in_their_order(tmp_path: Path) -> None:
    made = arrays()
    np.savez_compressed(tmp_path / "x.npz", **made)
    sets = opened(tmp_path / "x.npz")
    pixels, labels = images_of(sets[""])
    assert np.array_equal(pixels, np.concatenate([made["train_images"], made["val_images"]]))
    assert labels == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert sets[""].class_names == sets["test"].class_names == ("0", "1", "2")
    assert len(pickle.dumps(sets[""])) < 1000  # the pixels, which were read, stay behind
    assert images_of(pickle.loads(pickle.dumps(sets["test"])))[1] == [0, 1, 2, 0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"train_labels.npy") + len(b"train_labels.npy") + 20
    data[at : at + 30] = bytes(30)
    path.write_bytes(bytes(data))


FAULTS: dict[str, tuple[dict, Callable[[Path], object], str]] = {
    "no part": ({"test_labels": None}, lambda p: None, "has no array test_labels"),
    "several labels": ({"train_labels": np.zeros((6, 14), np.uint8)}, lambda p: None, "several labels an image"),
    "volumes": ({"val_images": np.zeros((3, 28, 28, 28), np.uint8)}, lambda p: None, "which are volumes"),
    "floats": ({"train_images": np.zeros((6, 28, 28))}, lambda p: None, "of float64"),
    "flat": ({"train_images": np.zeros((6, 784), np.uint8)}, lambda p: None, r"shape \(6, 784\)"),
    "fewer labels": ({"test_labels": np.zeros((3, 1), np.uint8)}, lambda p: None, "4 test_images and 3 test_labels"),
    "negative": ({"val_labels": -np.ones((3, 1), np.int8)}, lambda p: None, "negative label"),
    "absurd": ({"val_labels": np.full((3, 1), 10**9)}, lambda p: None, "has the label 1000000000"),
    "objects": ({"train_labels": np.array([{}] * 6, object)}, lambda p: None, "of object"),
    "cut": ({}, cut, "no readable .npz"),
    "damaged": ({}, damage, "read"),
    "text": ({}, lambda p: p.write_text("hello"), "no readable .npz"),
    "gone": ({}, lambda p: p.unlink(), "does not exist"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    changes, act, message = FAULTS[name]
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **arrays(**changes))
    act(path)
    with pytest.raises(MimeoError, match=message) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (2, 3)


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays())
    with pytest.raises(MimeoError, match=r"has the label 2, source.class_names has 2 names"):
        opened(tmp_path / "x.npz", class_names=("a", "b"))
