"""Augmentation: each sample's draws are its own, mixup and CutMix are torchvision's, tests see the centre."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from engine.spec.classifier import TrainSpec
from engine.training.classifier.augment import Augment, Mix, centred, mix, normalised, transforms

FULL = TrainSpec.model_validate(
    {
        "crop": "resized",
        "flip": True,
        "affine": True,
        "color_jitter": 0.4,
        "rand_augment": 9,
        "mixup": 0.8,
        "cutmix": 1.0,
    }
)


def images(count: int, side: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )


def test_a_sample_looks_the_same_whichever_rank_makes_it() -> None:
    augment, batch = Augment(FULL, 24, 5), images(8, 32)
    whole = augment(batch, 3, 0)
    halves = torch.cat([augment(batch[:4], 3, 0), Augment(FULL, 24, 5)(batch[4:], 3, 4)])
    assert torch.equal(whole, halves)
    assert not torch.equal(whole, augment(batch, 4, 0))
    assert whole.shape == (8, 3, 24, 24)
    same = Augment(FULL, 24, 5)(batch[:1].expand(8, -1, -1, -1), 3, 0)
    assert len({image.numpy().tobytes() for image in same}) == 8


def test_real_fakes_transforms_are_the_papers() -> None:
    spec = TrainSpec(crop="resized", flip=True, color_jitter=0.4)
    crop, flip, jitter = transforms(spec, 224)
    assert isinstance(crop, v2.RandomResizedCrop)
    assert (list(crop.scale), list(crop.size)) == ([0.08, 1.0], [224, 224])
    assert isinstance(flip, v2.RandomHorizontalFlip)
    assert isinstance(jitter, v2.ColorJitter)
    assert tuple(jitter.brightness) == (0.6, 1.4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_torchvisions_on_pairs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v2.MixUp and v2.CutMix mix a batch with itself rolled by one: with a batch of two that is a swap of the pair."""
    batch, labels = images(2, 16).float(), torch.tensor([1, 4])
    theirs = (v2.MixUp if kind == "mixup" else v2.CutMix)(alpha=1.0, num_classes=6)
    torch.manual_seed(0)
    params = theirs.make_params([batch])
    monkeypatch.setattr(theirs, "make_params", lambda flat: params)
    expected_images, expected_targets = theirs(batch, labels)
    if kind == "mixup":
        own = Mix(params["lam"])
    else:
        left, top, right, bottom = (edge / 16 for edge in params["box"])
        own = Mix(0.123, (top, bottom, left, right))
    torch.testing.assert_close(own.images(batch), expected_images)
    torch.testing.assert_close(own.targets(labels, 6, 16), expected_targets.float())


def test_mixing_is_equal_on_every_rank_and_drawn_from_beta() -> None:
    shares = np.array([mix(FULL.model_copy(update={"cutmix": 0.0}), 0, step).share for step in range(2000)])  # type: ignore[union-attr]
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01
    kinds = [mix(FULL, 0, step).box is not None for step in range(400)]  # type: ignore[union-attr]
    assert 0.4 < np.mean(kinds) < 0.6
    assert mix(TrainSpec(), 0, 0) is None
    whole, pairs = Mix(0.3).images(images(8, 8).float()), images(8, 8).float()
    torch.testing.assert_close(whole[4:], Mix(0.3).images(pairs[4:]))


def test_what_is_tested_is_the_centre() -> None:
    batch = images(2, 256)
    torch.testing.assert_close(centred(batch, 224, 0.875), v2.CenterCrop(224)(batch))
    assert centred(images(2, 8), 8, 1.0).equal(images(2, 8))
    assert normalised(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]
