"""The judge CNN: its layers, its augmentation against a geometric oracle, and that a seed decides everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.datasets import load_digits

from engine.spec.recipe import JudgeSpec
from engine.training.judge_model import (
    DEGREES,
    SCALE,
    SHIFT,
    Judge,
    Part,
    affine,
    batches,
    flip,
    normalise,
    predict,
    shares,
    train,
)


def digits(first: int, stop: int) -> Part:
    data = load_digits()
    pixels = np.round(data.images[first:stop] / 16 * 255).astype(np.uint8)[..., None].repeat(3, axis=3)
    return Part(torch.from_numpy(pixels), torch.from_numpy(data.target[first:stop]).long())


@pytest.mark.parametrize(("size", "last"), [(8, 32), (16, 32), (32, 64), (64, 64)])
def test_channels_and_output_shape(size: int, last: int) -> None:
    model = Judge(size, classes=7, width=16)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[-1].out_channels == last
    assert [m.out_channels for m in convolutions[:4]] == [16, 16, 32, 32]


def test_normalise_spans_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 4, 4, 3)
    images = normalise(pixels)
    assert images.shape == (2, 3, 4, 4)
    assert images[0].max() == -1
    assert images[1].min() == 1


def test_flip_mirrors_about_half() -> None:
    images = torch.arange(400.0).reshape(100, 1, 2, 2)
    flipped = flip(images, torch.Generator().manual_seed(0))
    mirrored = [bool((flipped[k] == images[k].flip(2)).all()) for k in range(100)]
    kept = [bool((flipped[k] == images[k]).all()) for k in range(100)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 30 < sum(mirrored) < 70


def test_affine_is_scipys_rotation_scale_and_shift() -> None:
    size = 16
    rng = np.random.default_rng(0)
    images = torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=(5, 1, size, size)), (0, 0, 2, 2))).float()
    moved = affine(images, torch.Generator().manual_seed(3))
    draws = (torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) * 2 - 1).numpy().astype(float)
    for k in range(5):
        angle, scale = math.radians(DEGREES) * draws[0, k], 1 + SCALE * draws[1, k]
        x_shift, y_shift = draws[2:, k] * SHIFT * size
        matrix = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # rows: y, x
        centre = np.full(2, (size - 1) / 2)
        offset = centre - matrix @ centre + np.array([y_shift, x_shift])
        expected = ndimage.affine_transform(images[k, 0].numpy(), matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(moved[k, 0].numpy(), expected, atol=1e-4)


def test_batches_use_every_image_equally_often() -> None:
    drawn = torch.cat(list(itertools.islice(batches(10, 7, torch.Generator().manual_seed(0)), 20)))
    assert torch.bincount(drawn, minlength=10).tolist() == [14] * 10
    assert [len(set(drawn[i : i + 10].tolist())) for i in range(0, 140, 10)] == [10] * 14


def test_shares_are_even() -> None:
    assert shares(64, 2) == [32, 32]
    assert shares(7, 2) == [4, 3]
    assert shares(5, 1) == [5]


def test_learns_digits_and_repeats_bit_for_bit() -> None:
    spec, real, test = JudgeSpec(steps=60), digits(0, 300), digits(900, 1797)
    first, loss = train([real], spec, 10, seed=1)
    again, loss_again = train([real], spec, 10, seed=1)
    other, _ = train([real], spec, 10, seed=2)
    predicted = predict(first, test.pixels)
    assert (predicted == test.labels.numpy()).mean() > 0.85
    assert loss == loss_again
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.head[1].weight, other.head[1].weight)


def test_each_part_fills_its_share_of_every_batch() -> None:
    grey = torch.full((400, 8, 8, 3), 99, dtype=torch.uint8)
    few, many = Part(grey[:4], torch.ones(4, dtype=torch.int64)), Part(grey, torch.zeros(400, dtype=torch.int64))
    model, _ = train([few, many], JudgeSpec(steps=40, augment="none"), 2, seed=0)
    with torch.inference_mode():
        scores = model(normalise(grey[:1])).softmax(1)
    assert scores[0, 1] == pytest.approx(0.5, abs=0.1)  # pooled, the few would count 1 in 101


def test_the_global_seed_of_the_process_plays_no_part() -> None:
    real = digits(0, 50)
    torch.manual_seed(5)
    _, first = train([real], JudgeSpec(steps=5), 10, seed=0)
    torch.manual_seed(6)
    _, second = train([real], JudgeSpec(steps=5), 10, seed=0)
    assert first == second
