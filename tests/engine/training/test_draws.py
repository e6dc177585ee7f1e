"""Draws are pure functions of (seed, stage, step), and batches see every image equally often."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from engine.training import draws


@pytest.mark.parametrize(("count", "batch"), [(100, 96), (7, 16), (5, 5), (1, 3), (1000, 64)])
def test_batches_walk_through_permutations(count: int, batch: int) -> None:
    steps = 40
    rows = torch.cat([draws.batch_indices(3, "clip", step, batch, count) for step in range(steps)]).tolist()
    assert len(rows) == steps * batch
    for first in range(0, len(rows) - count + 1, count):
        assert sorted(rows[first : first + count]) == list(range(count))
    seen = Counter(rows)
    assert max(seen.values()) - min(seen.get(row, 0) for row in range(min(count, steps * batch))) <= 1


def test_a_step_can_be_asked_for_alone() -> None:
    forwards = [draws.batch_indices(9, "vae", step, 10, 23).tolist() for step in range(12)]
    backwards = [draws.batch_indices(9, "vae", step, 10, 23).tolist() for step in reversed(range(12))]
    assert forwards == backwards[::-1]


def test_seed_stage_and_step_all_count() -> None:
    base = torch.rand(4, generator=draws.generator(1, "unet", 5))
    assert torch.equal(base, torch.rand(4, generator=draws.generator(1, "unet", 5)))
    for other in ((2, "unet", 5), (1, "vae", 5), (1, "unet", 6)):
        assert not torch.equal(base, torch.rand(4, generator=draws.generator(*other)))
    assert draws.batch_indices(1, "unet", 0, 50, 50).tolist() != draws.batch_indices(2, "unet", 0, 50, 50).tolist()


def test_the_global_state_of_torch_is_not_touched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draws.batch_indices(1, "clip", 0, 4, 9)
    draws.generator(1, "clip", 0)
    assert torch.equal(torch.rand(3), expected)


def test_class_batches_hold_pairs_of_a_class_and_see_every_image_equally_often() -> None:
    labels = torch.tensor([0] * 6 + [1] * 5 + [2])
    steps = [draws.class_batch_indices(3, "match", step, 4, labels) for step in range(14)]  # 7 pairs a round: 4 rounds
    for rows in steps:
        assert (torch.bincount(labels[rows]) % 2 == 0).all()
    counts = torch.bincount(torch.cat(steps), minlength=12)
    assert (counts[:6] == 4).all()  # once a round
    assert counts[6:11].sum() == 6 * 4  # the class of five pairs one of them twice
    assert (counts[6:11] >= 4).all()
    assert counts[11] == 2 * 4
    assert draws.class_batch_indices(3, "match", 5, 4, labels).tolist() == steps[5].tolist()
