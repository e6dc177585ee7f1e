"""The strong augmentation: shares of labels are areas, draws follow the seed, and a judge learns with each kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.spec.recipe import JudgeSpec
from engine.training.judge_model import Part, predict, train
from engine.training.strong import KINDS, Strong
from tests.support.synthetic import noisy_digits

SIDE = 16


def test_cutmix_labels_are_the_area_that_is_kept() -> None:
    torch.manual_seed(0)
    labels = torch.arange(8)
    images = labels.float()[:, None, None, None].expand(8, 3, SIDE, SIDE).clone()
    mixed, shares = Strong("randaugment+cutmix", 8).mixed(images, labels)
    for image, share in zip(mixed, shares, strict=True):
        for label, value in enumerate(share.tolist()):
            assert value == pytest.approx(float((image[0] == label).float().mean()), abs=1e-6)


def test_mixup_labels_are_the_share_of_the_pixels() -> None:
    torch.manual_seed(1)
    labels = torch.tensor([0, 1, 0, 1])
    images = labels.float()[:, None, None, None].expand(4, 3, SIDE, SIDE).clone()
    mixed, shares = Strong("randaugment+mixup", 2).mixed(images, labels)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), shares[:, 1], atol=1e-6)


def test_randaugment_alone_keeps_labels_and_draws_a_group_at_a_time() -> None:
    labels = torch.zeros(64, dtype=torch.int64)
    pixels = torch.tensor(noisy_digits(1)[0]).expand(64, 8, 8, 3)
    strong = Strong("randaugment", 10)
    torch.manual_seed(3)
    found = strong.pixels(pixels)
    assert (found.shape, found.dtype) == ((64, 8, 8, 3), torch.uint8)
    assert 1 < len({image.numpy().tobytes() for image in found}) <= 8
    assert strong.mixed(pixels, labels)[1] is labels
    torch.manual_seed(3)
    assert torch.equal(strong.pixels(pixels), found)
    assert len(strong.pixels(pixels[:3])) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_learns_under_it_and_repeats_itself(kind: str) -> None:
    pixels, labels = noisy_digits(300)
    part = Part(torch.tensor(pixels), torch.tensor(labels))
    spec = JudgeSpec(steps=40)
    model, loss = train([part], spec, 10, 0, strong=kind)
    again, same = train([part], spec, 10, 0, strong=kind)
    assert loss == same
    assert np.array_equal(predict(model, part.pixels), predict(again, part.pixels))
    assert float((predict(model, part.pixels) == labels).mean()) > 0.3
    _, plain = train([part], spec, 10, 0)
    assert loss > plain  # it is harder


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Strong("autoaugment", 10)
