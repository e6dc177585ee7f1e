"""Images held out: by class, the same each time, seen by no training; the least of a planted curve is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.diffusion.process import Edm
from engine.training.powerema import PowerEma
from engine.training.pretrain.heldout import LENGTHS, MOST, PAIRS, Pairs, choose, split


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("sizes", [(40, 40, 40), (97, 3, 20), (200,), (1, 1, 1, 60)])
def test_the_split_takes_the_share_of_each_class(share: float, sizes: tuple[int, ...]) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    ours, theirs = split(labels, share, 7)
    assert sorted([*ours, *theirs]) == list(range(len(labels)))
    assert (np.diff(ours) > 0).all()
    assert (np.diff(theirs) > 0).all()
    assert len(theirs) == int(len(labels) * share)
    taken = np.bincount(labels[theirs], minlength=len(sizes))
    assert (np.abs(taken - share * np.array(sizes)) <= 1).all()


def test_the_split_depends_on_the_seed_alone() -> None:
    labels = np.repeat(np.arange(10), 30)
    first, again, other = (split(labels, 0.1, seed)[1].tolist() for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("images", [3, 100, 700, 5000])
def test_pairs_are_the_same_at_each_reading_and_cover_the_noise_levels(images: int) -> None:
    pairs = Pairs(images, (1, 2, 2), Edm(), 3)
    first, again = ([torch.cat(parts) for parts in zip(*pairs, strict=True)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    rows, noise, times = first
    assert len(rows) == len(noise) == len(times) == pairs.count
    assert PAIRS <= pairs.count <= MOST
    counts = np.bincount(rows.numpy(), minlength=images)
    assert counts.max() - counts.min() <= 1
    levels = np.sort(4 * times.numpy())
    quantiles = (np.arange(pairs.count) + 0.5) / pairs.count
    from scipy.stats import norm

    middle = slice(pairs.count // 20, -pairs.count // 20)
    np.testing.assert_allclose(levels[middle], norm(-1.2, 1.2).ppf(quantiles)[middle], atol=0.08)
    assert abs(np.corrcoef(rows.numpy(), times.numpy())[0, 1]) < 0.15


def planted(best: int, rises: float) -> tuple[dict[str, object], PowerEma, nn.Parameter]:
    """A training whose one weight grows by 1 a step; held-out images like the weight `best`, training images larger
    ones."""
    weight = nn.Parameter(torch.zeros(1))
    ema = PowerEma([weight], 64, 0.1)
    for step in range(64):
        weight.data.fill_(step + 1.0)
        ema.update([weight], step)
    found = choose(ema, lambda: [weight], lambda: float(100 - weight), lambda: float((weight - best).abs() * rises))
    return found, ema, weight


@pytest.mark.parametrize("best", [13, 30, 58])
def test_the_least_held_out_error_chooses_step_and_length(best: int) -> None:
    """By brute force: of the averages at the middle length the nearest step, then of the lengths there the nearest."""
    found, ema, weight = planted(best, 1.0)

    def off(step: int, length: float) -> float:
        return abs(float(ema.weights(step, length)[0]) - best)

    middle = LENGTHS[len(LENGTHS) // 2]
    step = min(ema.steps, key=lambda step: off(step, middle))
    length = min(LENGTHS, key=lambda length: off(step, length))
    assert (found["chosen_step"], found["chosen_length"]) == (step, length) == ema.chosen
    assert found["step"] == ema.steps
    np.testing.assert_allclose(found["held"], [off(step, middle) for step in ema.steps], rtol=1e-5)  # type: ignore[arg-type]
    assert (np.diff(found["train"]) < 0).all()  # type: ignore[arg-type]
    assert [length for length, _ in found["lengths"]] == list(LENGTHS)  # type: ignore[attr-defined]
    ema.copy_to([weight])
    assert float((weight - best).abs()) == pytest.approx(off(step, length))
