"""Other sets: mappings, faults in one line, and MNIST and USPS for real, with a judge that was trained on digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from engine.errors import ConfigError, DataError, MimeoError
from engine.evaluation import ood
from engine.evaluation.classifiers import JudgeClassifier
from engine.images.inspection import pixels_digest
from engine.spec import RunSpec, validate
from engine.spec.evaluation import SetSpec
from engine.spec.recipe import JudgeSpec
from engine.training import judge_model

DIGITS = tuple("0123456789")
STEPS = 300


def spec_of(size: int = 8) -> RunSpec:
    return validate({"name": "x", "source": {"kind": "digits"}, "images": {"size": size}})


def asked(**source: object) -> SetSpec:
    more = {key: source.pop(key) for key in ("classes", "restrict", "border") if key in source}
    return SetSpec.model_validate({"source": source, **more})


@pytest.fixture(scope="module")
def classifier() -> JudgeClassifier:
    """One judge, trained for some seconds on the 1,797 digits of 8 pixels."""
    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    part = judge_model.Part(torch.tensor(grey[..., None].repeat(3, 3)), torch.tensor(data.target))
    model, _ = judge_model.train([part], JudgeSpec(steps=STEPS), 10, seed=0)
    return JudgeClassifier(model, DIGITS, 8, "cpu")


def accuracy(classifier: JudgeClassifier, name: str, one: SetSpec) -> tuple[float, int]:
    other = ood.open_set(name, one, spec_of(), DIGITS)
    told = ood.Read()
    found = [ood.right(classifier, pixels, labels) for pixels, labels in ood.stream(other, frozenset(), told)]
    right = np.concatenate(found)
    assert len(right) == told.images
    return float(right.mean()), told.images


def test_mnist_for_real(classifier: JudgeClassifier) -> None:
    """A CNN of real digits alone reaches about 60 % on MNIST's inner 20 pixels; with its frame of 4 the digits are too
    small."""
    found, images = accuracy(classifier, "mnist", asked(kind="mnist", border=4))
    assert images == 5000
    assert 0.45 < found < 0.8
    framed, _ = accuracy(classifier, "framed", asked(kind="mnist"))
    assert 0.15 < framed < found - 0.1


def test_usps_for_real(classifier: JudgeClassifier, shared_data: Path) -> None:
    """On USPS it reaches 74 to 79 %."""
    found, images = accuracy(classifier, "usps", asked(kind="usps", path=str(shared_data / "usps/usps_all.mat")))
    assert images == 9298
    assert 0.62 < found < 0.9


def test_a_mapping_names_the_classes_anew(classifier: JudgeClassifier) -> None:
    other = ood.open_set("m", asked(kind="mnist", classes={"3": "8", "4": "0"}), spec_of(), DIGITS)
    assert other.left_out == {str(k): 500 for k in (0, 1, 2, 5, 6, 7, 8, 9)}
    assert np.bincount(other.labels, minlength=10).tolist() == [500, 0, 0, 0, 0, 0, 0, 0, 500, 0]
    assert other.present.tolist() == [0, 8]


def test_a_restricted_classifier_chooses_among_the_sets_classes(classifier: JudgeClassifier) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    probabilities, among = classifier.probabilities(pixels), np.array([2, 5])
    expected = np.where(probabilities[:, 2] >= probabilities[:, 5], 2, 5)
    assert ood.right(classifier, pixels, expected, among).all()
    assert not ood.right(classifier, pixels, 7 - expected, among).any()
    assert ood.right(classifier, pixels, probabilities.argmax(1)).all()


@pytest.mark.parametrize(
    ("theirs", "mapping", "says"),
    [
        (["cat", "dog"], {"cta": "feline"}, "'cta' is no class of the set; did you mean cat?"),
        (["cat", "dog"], {"cat": "feliné"}, "'feliné' is no class of the run; did you mean feline?"),
        (["bird"], None, "none of the set's 1 classes"),
        (["cat"], {}, "none of the set's 1 classes"),
    ],
)
def test_mappings_that_cannot_be_are_one_line(theirs: list[str], mapping: dict[str, str] | None, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ood.class_map(theirs, ["feline", "canine"], mapping, "evaluate.sets.pets.classes")
    assert str(caught.value).startswith("evaluate.sets.pets.classes: ")
    assert says in str(caught.value)


def test_equal_names_map_without_a_mapping_and_two_classes_may_become_one() -> None:
    assert ood.class_map(["b", "x", "a"], ["a", "b"], None, "w").tolist() == [1, -1, 0]
    assert ood.class_map(["tabby", "siamese"], ["cat"], {"tabby": "cat", "siamese": "cat"}, "w").tolist() == [0, 0]


def folder(place: Path, classes: dict[str, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in classes.items():
        (place / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(place / name / f"{i}.png")
    return place


def test_bad_images_and_images_of_the_training_split_are_left_out_and_counted(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", {"a": 5, "b": 5, "other": 2})
    (place / "a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (place / "b/empty.png").touch()
    known = pixels_digest(np.asarray(Image.open(place / "b/3.png")))
    other = ood.open_set("s", asked(kind="folder", path=str(place)), spec_of(), ("a", "b"))
    told = ood.Read()
    chunks = list(ood.stream(other, frozenset([known]), told))
    assert (told.images, told.bad, told.trained_on, other.bad) == (9, 1, 1, 1)
    assert other.left_out == {"other": 2}
    assert np.concatenate([labels for _, labels in chunks]).tolist() == [0] * 5 + [1] * 4
    assert chunks[0][0].shape == (9, 8, 8, 3)


def test_a_border_is_cut_off_and_images_that_have_no_more_are_bad(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", {"a": 2, "b": 2})
    Image.new("RGB", (8, 8)).save(place / "a/small.png")
    other = ood.open_set("s", asked(kind="folder", path=str(place), border=4), spec_of(), ("a", "b"))
    told = ood.Read()
    ((pixels, _),) = ood.stream(other, frozenset(), told)
    inner = Image.open(place / "a/0.png").crop((4, 4, 8, 8)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels[0], np.asarray(inner))
    assert told.bad == 1


def test_only_the_given_test_set_is_read(tmp_path: Path) -> None:
    main = folder(tmp_path / "main", {"a": 4, "b": 4})
    test = folder(tmp_path / "test", {"a": 2, "b": 3}, seed=1)
    source = {"kind": "folder", "path": str(main), "test_path": str(test)}
    other = ood.open_set("s", asked(**source), spec_of(), ("a", "b"))
    chunks = list(ood.stream(other, frozenset(), ood.Read()))
    assert np.concatenate([labels for _, labels in chunks]).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "absent", "evaluate.sets.s.source.path: "),
        (lambda p: folder(p / "x", {"a": 0, "b": 1}), "class folder a is empty"),
        (lambda p: folder(p / "x", {"c": 1, "d": 1}), "none of the set's 2 classes"),
    ],
)
def test_sets_that_cannot_be_read_are_found_before_anything_starts(tmp_path: Path, make: object, says: str) -> None:
    with pytest.raises(MimeoError) as caught:
        ood.precheck("s", asked(kind="folder", path=str(make(tmp_path))), spec_of(), ("a", "b"))
    assert says in str(caught.value)
    assert str(caught.value).startswith("evaluate.sets.s.")


def test_a_set_without_a_good_image_is_refused(tmp_path: Path) -> None:
    place = folder(tmp_path / "x", {"a": 1, "b": 1})
    for path in place.rglob("*.png"):
        path.write_bytes(b"text")
    other = ood.open_set("s", asked(kind="folder", path=str(place)), spec_of(), ("a", "b"))
    with pytest.raises(DataError, match=r"evaluate.sets.s: 2 of 2 images are bad"):
        list(ood.stream(other, frozenset(), ood.Read()))


def test_images_are_averaged_down_and_interpolated_up() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert ood.sized(pixels, 8) is pixels
    assert np.abs(ood.sized(pixels, 4) - pixels.reshape(3, 4, 2, 4, 2, 3).mean(axis=(2, 4))).max() <= 0.5
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    assert (ood.sized(flat, 20) == 77).all()
