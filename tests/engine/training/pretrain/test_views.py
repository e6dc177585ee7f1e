"""Views of images: labels of zeros are images as they are, labels determine the view, and both are drawn alike on any
number of workers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from engine.diffusion.tiny.pixelmodels import build_unet
from engine.spec.training import PixelSpec, ViewsSpec
from engine.training.pretrain.views import WIDTH, Labelled, Views

SIDE = 32
GEOMETRY = slice(0, 8)


def views(**settings: Any) -> Views:
    return Views(ViewsSpec(**{"probability": 0.5} | settings))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int) -> torch.Tensor:
    """(N, 3, SIDE, SIDE): the places of the pixels' centres, x and y in [-1, 1], and a half of their sum: all
    linear."""
    places = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    x, y = places[None].expand(SIDE, SIDE), places[:, None].expand(SIDE, SIDE)
    return torch.stack([x, y, (x + y) / 2]).expand(count, 3, SIDE, SIDE).clone()


def place_in_image(labels: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 2): where each pixel of a view comes from, by its labels alone: mirror, scale, rotation, stretch,
    shift in turn."""
    mirror, scale, cos, sin, stretch_cos, stretch_sin, right, down = labels[GEOMETRY].astype(float)
    centres = (2 * np.arange(SIDE) + 1) / SIDE - 1
    points = np.stack(np.meshgrid(centres, centres), -1)
    points = points - 2 * 0.125 * np.array([right, down])
    by, twice = math.hypot(stretch_cos, stretch_sin), math.atan2(stretch_sin, stretch_cos)
    turn = np.array([[math.cos(twice / 2), -math.sin(twice / 2)], [math.sin(twice / 2), math.cos(twice / 2)]])
    points = points @ (turn.T @ np.diag([2 ** (-0.2 * by), 2 ** (0.2 * by)]) @ turn).T
    angle = -math.atan2(sin, cos + 1)
    points = points @ np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).T
    return points * 2 ** (-0.2 * scale) * np.array([1 - 2 * mirror, 1])


def test_labels_of_zeros_are_the_image_bit_for_bit() -> None:
    images = torch.rand(400, 3, 8, 8, generator=generator(1)) * 2 - 1
    found, labels = views(probability=0.3, colour=True, mirror=True).draw(images, generator())
    plain = (labels == 0).all(1)
    assert labels.shape == (400, WIDTH)
    assert 5 < plain.sum() < 200
    assert torch.equal(found[plain], images[plain])
    changed = (found != images).flatten(1).any(1)
    assert (changed == ~plain).all()


@pytest.mark.parametrize("probability", [0.12, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kinds", "settings"),
    [(4, {}), (8, {"colour": True}), (8, {"colour": True, "mirror": True}), (4, {"mirror": True})],
)
def test_as_many_images_stay_plain_as_independent_kinds_leave(
    probability: float, kinds: int, settings: dict[str, bool]
) -> None:
    """(1 - p)^k for k kinds; the mirror image changes only half of those that it is drawn for."""
    _, labels = views(probability=probability, **settings).draw(torch.zeros(20_000, 3, 2, 2), generator())
    expected = (1 - probability) ** kinds * (1 - probability / 2 if settings.get("mirror") else 1)
    assert (labels == 0).all(1).double().mean().item() == pytest.approx(expected, abs=0.011)


def test_labels_say_where_each_pixel_came_from() -> None:
    """On ramps, which interpolation leaves almost as they are (a pixel is 0.06), a view has the place in the image that
    its labels say."""
    images = ramps(60)
    found, labels = views(probability=1.0, mirror=True, degrees=40).draw(images, generator())
    inside = 0
    for view, label in zip(found.numpy(), labels.numpy(), strict=True):
        expected = place_in_image(label)
        seen = (np.abs(expected) < 1 - 6 / SIDE).all(-1)  # the mirrored edge and its neighbourhood are no ramp
        np.testing.assert_allclose(view[:2][:, seen], expected.transpose(2, 0, 1)[:, seen], atol=5e-3)
        inside += seen.sum()
    assert inside > 60 * SIDE**2 / 4


def test_a_mirror_image_is_the_flip() -> None:
    images = torch.rand(3000, 3, 8, 8, generator=generator(1)) * 2 - 1
    found, labels = views(probability=0.1, mirror=True).draw(images, generator())
    only = (labels[:, 0] == 1) & (labels[:, 1:] == 0).all(1)
    assert only.sum() > 20
    torch.testing.assert_close(found[only], images[only].flip(3), rtol=1e-4, atol=1e-4)


def test_a_shift_moves_the_image_by_an_eighth_of_the_side_for_each_deviation() -> None:
    blob = torch.zeros(1, 3, SIDE, SIDE) - 1
    blob[:, :, 15:17, 15:17] = 1
    found, labels = views(probability=0.3, degrees=0).draw(blob.expand(2000, -1, -1, -1), generator())
    only = (labels[:, 6:8] != 0).all(1) & (labels[:, :6] == 0).all(1) & (labels[:, 6:8].abs() < 1.5).all(1)
    assert only.sum() > 20
    mass = (found[only, 0] + 1).double()
    places = torch.arange(SIDE, dtype=torch.float64)
    across = (mass.sum(1) * places).sum(1) / mass.sum((1, 2)) - 15.5
    along = (mass.sum(2) * places).sum(1) / mass.sum((1, 2)) - 15.5
    moved = torch.stack([across, along], 1)
    torch.testing.assert_close(moved, SIDE / 8 * labels[only, 6:8].double(), rtol=0, atol=0.25)


def test_colours_change_as_their_labels_say() -> None:
    """Brightness adds, contrast multiplies; hue and saturation leave the mean of the channels."""
    images = (torch.rand(4000, 3, 2, 2, generator=generator(1)) * 2 - 1) * 0.2
    found, labels = views(probability=0.15, colour=True, degrees=0).draw(images, generator())
    rest = (labels[:, GEOMETRY] == 0).all(1)
    brightness, contrast, cos, sin, saturation = labels[:, 8:].T
    for chosen, others, expected in (
        (brightness, (contrast, sin, saturation), images + 0.2 * brightness[:, None, None, None]),
        (contrast, (brightness, sin, saturation), images * 2 ** (0.5 * contrast)[:, None, None, None]),
    ):
        rows = rest & (chosen != 0) & torch.stack([other == 0 for other in others]).all(0)
        assert rows.sum() > 20
        torch.testing.assert_close(found[rows], expected.clamp(-1, 1)[rows], rtol=1e-4, atol=1e-4)
    rows = (
        rest
        & (brightness == 0)
        & (contrast == 0)
        & ((sin != 0) | (saturation != 0))
        & (found.abs() < 1).flatten(1).all(1)
    )
    assert rows.sum() > 20
    torch.testing.assert_close(found[rows].mean(1), images[rows].mean(1), rtol=1e-3, atol=1e-4)
    spread = [(one - one.mean(1, keepdim=True)).square().sum(1).sqrt() for one in (found[rows], images[rows])]
    torch.testing.assert_close(spread[0], spread[1] * (2 ** saturation[rows])[:, None, None], rtol=1e-2, atol=1e-3)
    assert torch.allclose((cos + 1) ** 2 + sin**2, torch.ones(4000), atol=1e-5)


def test_each_worker_draws_what_one_draws() -> None:
    images = torch.rand(12, 3, 8, 8, generator=generator(1)) * 2 - 1
    whole, told = views(colour=True).draw(images, generator(5))
    again, again_told = views(colour=True).draw(images, generator(5))
    assert torch.equal(whole, again)
    assert torch.equal(told, again_told)
    other, _ = views(colour=True).draw(images, generator(6))
    assert not torch.equal(whole, other)


def small() -> UNet2DModel:
    torch.manual_seed(0)
    unet: Any = build_unet(PixelSpec(blocks=(8, 8), dropout=0), 8, 3)
    torch.nn.init.normal_(unet.conv_out.weight)
    return unet.eval()


@torch.no_grad()
def test_labels_of_zeros_add_nothing_and_others_do() -> None:
    unet = small()
    told = Labelled(unet)
    torch.nn.init.normal_(told.layer.weight)
    images, times, classes = torch.randn(4, 3, 8, 8), torch.zeros(4), torch.arange(4)

    def run(labels: torch.Tensor | None) -> torch.Tensor:
        output: Any = told(labels, images, times, class_labels=classes)
        return output.sample

    bare = small()(images, times, class_labels=classes).sample
    labels = torch.randn(4, WIDTH)
    labels[1] = 0
    assert torch.equal(run(None), bare)
    assert torch.equal(run(torch.zeros(4, WIDTH)), bare)
    found = run(labels)
    torch.testing.assert_close(found[1], bare[1])
    assert ((found - bare).abs().flatten(1).amax(1) > 1e-3).tolist() == [True, False, True, True]
    assert torch.equal(unet(images, times, class_labels=classes).sample, bare)  # nothing is left of the labels before


def test_the_layer_begins_at_zero_and_learns() -> None:
    told = Labelled(small())
    assert not told.layer.weight.any()
    output: Any = told(
        torch.ones(2, WIDTH), torch.randn(2, 3, 8, 8), torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.int64)
    )
    output.sample.square().mean().backward()
    assert told.layer.weight.grad is not None
    assert told.layer.weight.grad.abs().max() > 0
