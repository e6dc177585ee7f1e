"""Conditions from a cache, row by row, against the same put together by hand; a loss curve of many steps in few
points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from engine.training.latent_cache import Cache
from engine.training.loss_curve import MAX_POINTS, curve

VALUES = torch.Generator().manual_seed(0)
STATES = torch.randn(3, 5, 4, generator=VALUES)  # two prompts, then the empty one
POOLED = torch.randn(3, 2, generator=VALUES)
TOKENS = torch.randn(2, 6, 3, generator=VALUES)
LATENTS = torch.randn(2, 6, 4, 2, 2, generator=VALUES)
CACHE = Cache(
    labels=torch.arange(6) % 2,
    tokens=TOKENS,
    place=(3, 1),
    latents=LATENTS,
    told={"states": STATES, "pooled": POOLED},
    told_rows=torch.tensor([0, 1, 0, 1, 1, 0]),
)


def test_each_row_is_told_its_prompt_and_feature_unless_they_are_dropped() -> None:
    cases = list(itertools.product((0, 1), range(6), (False, True), (False, True)))
    variants, rows, without, without_image = (torch.tensor(column) for column in zip(*cases, strict=True))
    told = CACHE.condition(variants, rows, without, without_image)
    for number, (variant, row, dropped, bare) in enumerate(cases):
        text = 2 if dropped else int(CACHE.told_rows[row])
        expected = STATES[text].clone()
        if not dropped and not bare:
            expected[3, 1:4] = TOKENS[variant, row]
        assert torch.equal(told["states"][number], expected)
        assert torch.equal(told["pooled"][number], POOLED[text])
    assert torch.equal(CACHE.draw(variants, rows)[7], LATENTS[variants[7], rows[7]])
    assert (CACHE.variants, CACHE.latent_shape) == (2, (4, 2, 2))


@pytest.mark.parametrize("steps", [1, 3, MAX_POINTS, MAX_POINTS + 1, 7777])
def test_a_curve_keeps_the_mean(steps: int) -> None:
    losses = np.random.default_rng(steps).uniform(size=steps).tolist()
    found = curve(losses, 1.23456)
    assert len(found["loss"]) == len(found["step"]) <= MAX_POINTS
    assert found["step"][-1] == found["steps"] == steps
    sizes = np.diff([0, *found["step"]])
    assert np.average(found["loss"], weights=sizes) == pytest.approx(np.mean(losses))
