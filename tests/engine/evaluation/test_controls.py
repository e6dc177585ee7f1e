"""Controls: which can be made, photocopies at the distance asked for, and comparisons against scipy's paired
t-tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances

from engine.evaluation.controls import against, noise_of, photocopies, plan, strongest
from engine.evaluation.nearest import PixelSpace
from engine.spec.recipe import JudgeSpec
from engine.storage.store import open_store
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, judge_one
from engine.training.judge_training import filled
from tests.support.checkpoints import write_checkpoint
from tests.support.synthetic import digits_spec


def digits(count: int, first: int = 0) -> Arrays:
    data = load_digits()
    grey = (data.images[first : first + count] / 16 * 255).round().astype(np.uint8)
    return Arrays(grey[..., None].repeat(3, axis=3), data.target[first : first + count], np.arange(count))


def test_all_that_can_be_made_stand_at_the_largest_multiple(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    given = write_checkpoint(tmp_path / "model")
    spec = digits_spec(model={"checkpoint": str(given)})
    planned = plan(spec, store)
    assert [arm.key for arm in planned.arms] == ["duplicated_2x", "photocopy_2x", "reconstructed", "augmented"]
    assert (planned.left_out, planned.autoencoder) == ({}, str(given))
    chosen = plan(digits_spec(judge={"controls": ["augmented", "photocopy", "augmented"]}), store)
    assert [arm.key for arm in chosen.arms] == ["augmented", "photocopy_2x"]
    assert plan(digits_spec(judge={"controls": []}), store).arms == ()
    assert plan(digits_spec(judge={"arms": ["real"]}), store).arms == ()


def test_a_generator_without_a_vae_is_said(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    own = plan(digits_spec(), store)
    assert "reconstructed" not in {arm.kind for arm in own.arms}
    assert own.left_out == {"reconstructed": "the generator has no VAE"}
    other = write_checkpoint(tmp_path / "model")
    path = other / "vae" / "config.json"
    path.write_text(path.read_text().replace('"AutoencoderKL"', '"AutoencoderTiny"'))
    told = plan(digits_spec(model={"checkpoint": str(other)}), store).left_out["reconstructed"]
    assert told == "its VAE is a AutoencoderTiny, which is not read here"
    gone = plan(digits_spec(model={"checkpoint": str(tmp_path / "gone")}), store).left_out["reconstructed"]
    assert gone.startswith("the generator is not here")


def test_multiples_follow_the_number_of_samples() -> None:
    spec = digits_spec(judge={"multiples": None})
    assert filled(spec, 60).judge.multiples == (1, 2)
    assert filled(spec, 70).judge.multiples == (1,)
    assert filled(spec, 500).judge.multiples == (1,)  # too many for 1x, which is refused as before
    assert filled(digits_spec(judge={"multiples": [2]}), 12).judge.multiples == (2,)
    assert filled(digits_spec(generate={"count": 1000}, judge={"multiples": None}), 100).judge.multiples == (1, 10)


def test_photocopies_repeat_the_images_with_grey_noise_of_the_asked_strength() -> None:
    half = Arrays(np.full((3, 32, 32, 3), 128, np.uint8), np.array([2, 0, 1]), np.arange(3))
    found = photocopies(half, 7, 20.0, seed=5)
    assert found.labels.tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert (found.pixels == found.pixels[..., :1]).all()
    assert found.pixels[..., 0].astype(float).std() == pytest.approx(20, rel=0.03)
    assert np.array_equal(photocopies(half, 4, 20.0, seed=5).pixels, found.pixels[:4])
    assert not np.array_equal(photocopies(half, 4, 20.0, seed=6).pixels, found.pixels[:4])
    assert not np.array_equal(found.pixels[0], found.pixels[3])  # the same image, other noise
    coloured = Arrays(half.pixels - np.array([9, 0, 0], np.uint8), half.labels, half.index)
    assert not (np.diff(photocopies(coloured, 1, 20.0, seed=5).pixels.astype(int), axis=3)[..., 1] == 0).all()


@pytest.mark.parametrize("target", [6.0, 17.5, 35.0])
def test_the_noise_gives_the_distance_asked_for(target: float) -> None:
    """By scikit-learn's distances to the images themselves, which are the nearest ones at such noise but for rare
    cases."""
    train = digits(100)
    noise, distances = noise_of(target, PixelSpace(grey=True), train, 7)
    assert np.median(distances) == pytest.approx(target, rel=0.006)
    made = photocopies(train, 100, noise, 7)
    flat = [own.pixels[..., 0].reshape(100, 64).astype(float) for own in (made, train)]
    own = pairwise_distances(*flat).min(1) / 8
    assert np.median(own) == pytest.approx(target, rel=0.05)
    assert noise > target  # as black and white pixels cut half of it off


def test_a_distance_beyond_all_noise_takes_the_most() -> None:
    noise, distances = noise_of(400.0, PixelSpace(grey=True), digits(20), 7)
    assert noise == 255.0
    assert np.median(distances) < 400


def test_the_best_control_is_compared_in_pairs() -> None:
    told = {
        "real": {"kind": "real", "values": [0.9, 0.9, 0.9], "mean": 0.9},
        "synthetic_1x": {"kind": "synthetic", "values": [0.80, 0.82, 0.81], "mean": 0.81},
        "mixed_1x": {"kind": "mixed", "values": [0.99, 1.0, 0.99], "mean": 0.993},
        "photocopy_1x": {"kind": "photocopy", "values": [0.90, 0.93, 0.90], "mean": 0.91},
        "augmented": {"kind": "augmented", "values": [0.85, 0.80, 0.90], "mean": 0.85},
    }
    found = against(told)
    assert set(found) == {"synthetic_1x", "mixed_1x"}
    for key, finding in (("synthetic_1x", "better"), ("mixed_1x", "worse")):
        own = found[key]
        differences = np.subtract(told["photocopy_1x"]["values"], told[key]["values"])
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.975)
        assert (own["best"], own["finding"]) == ("photocopy_1x", finding)
        assert own["difference"] == pytest.approx(differences.mean())
        assert own["interval"] == pytest.approx([interval.low, interval.high])
    one = {key: {**arm, "values": arm["values"][:1]} for key, arm in told.items()}
    assert against(one)["synthetic_1x"]["finding"] == "not told apart"
    assert against({key: told[key] for key in ("real", "synthetic_1x")}) == {}


def test_control_arms_train_on_what_they_name() -> None:
    train, test = digits(60), digits(200, 1000)
    noisy = photocopies(train, 120, 20.0, 0)
    data = Data(train, test, digits(120, 300), n=60, classes=10, controls={"photocopy": noisy})
    spec = JudgeSpec(steps=15, seeds=1)
    copied = judge_one(Arm("photocopy", 2), 0, spec, data)
    assert (copied.real_images, copied.synthetic_images) == (120, 0)
    same = judge_one(Arm("real"), 0, spec, Data(noisy, test, None, n=120, classes=10))
    assert (same.accuracy, same.loss) == (copied.accuracy, copied.loss)
    twice = judge_one(Arm("duplicated", 2), 0, spec, data)
    both = Arrays(np.tile(train.pixels, (2, 1, 1, 1)), np.tile(train.labels, 2), np.arange(120))
    assert twice.loss == judge_one(Arm("real"), 0, spec, Data(both, test, None, n=120, classes=10)).loss
    assert (twice.real_images, twice.synthetic_images) == (60, 0)
    plain = judge_one(Arm("real"), 0, spec, data)
    strong = judge_one(Arm("augmented"), 0, spec, data)
    assert strong.loss > plain.loss
    assert strong.real_images == 60


def test_the_strong_augmentation_is_chosen_on_validation_images_alone() -> None:
    data = Data(digits(60), digits(10, 1000), None, n=60, classes=10)
    spec = JudgeSpec(steps=30, seeds=2)
    assert strongest(data, None, spec) == {"kind": "randaugment+cutmix", "chosen_on": None, "scores": {}}
    found = strongest(data, digits(300, 100), spec)
    assert found["scores"][found["kind"]] == max(found["scores"].values())
    assert len(found["scores"]) == 3
    blind = Data(data.train, digits(10, 1200), None, n=60, classes=10)
    assert strongest(blind, digits(300, 100), spec) == found  # test images change nothing
