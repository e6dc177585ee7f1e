"""The mixing plan against counters: exact shares after every batch, no member twice in an epoch, whatever the ranks."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.shards.mixing import WINDOW, Mixture, _rounded, shares

sizes_of = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def labelled(sizes: list[int], classes: int = 4) -> list[np.ndarray]:
    return [np.arange(size, dtype=np.int64) % classes for size in sizes]


def drawn(plan: Mixture, steps: int, ranks: int) -> list[tuple[int, int]]:
    """(source, row) of `steps` batches as `ranks` workers take them, batch by batch and rank by rank."""
    part = plan.batch // ranks
    out = []
    for step in range(steps):
        for rank in range(ranks):
            own = plan.draw(step)
            mine = slice(rank * part, (rank + 1) * part)
            out += list(zip(own.source[mine].tolist(), own.row[mine].tolist(), strict=True))
    return out


@settings(max_examples=60)
@given(
    sizes=sizes_of,
    batch=st.sampled_from([4, 8, 12, 64, 100]),
    fixed=st.none() | st.floats(0.01, 0.99).map(lambda x: round(x, 3)),
    seed=st.integers(0, 5),
    ranks=st.sampled_from([1, 2, 4]),
    balanced=st.booleans(),
)
def test_shares_are_exact_and_no_member_comes_twice_in_an_epoch(
    sizes: list[int], batch: int, fixed: float | None, seed: int, ranks: int, balanced: bool
) -> None:
    share = shares(sizes, fixed)
    plan = Mixture(labelled(sizes), batch, seed, share=share, class_balanced=balanced)
    steps = 6
    rows = drawn(plan, steps, ranks)
    bound = Fraction(1, 2) if len(sizes) <= 2 else Fraction(1)
    counted: Counter[int] = Counter()
    for step in range(steps):
        counted.update(source for source, _ in rows[step * batch : (step + 1) * batch])
        for source, own in enumerate(share):
            assert abs(counted[source] - own * batch * (step + 1)) <= bound
    assert len(rows) == steps * batch
    for source, size in enumerate(sizes):
        uses = Counter(row for own, row in rows if own == source)
        assert set(uses) <= set(range(size))
        labels = np.arange(size) % 4
        groups = [range(size)] if not balanced else [np.flatnonzero(labels == c).tolist() for c in range(min(4, size))]
        for (
            group
        ) in groups:  # an epoch ends when all came: no member is ahead of another of its stream by more than one
            times = [uses[member] for member in group]
            assert max(times) - min(times) <= 1
        if balanced:
            of_class = Counter(int(labels[row]) for own, row in rows if own == source)
            times = [of_class[c] for c in range(min(4, size))]
            assert max(times) - min(times) <= 1


@given(sizes=sizes_of, seed=st.integers(0, 3), step=st.integers(0, 10**6))
def test_any_step_can_be_asked_for_alone_and_every_rank_layout_sees_the_same(
    sizes: list[int], seed: int, step: int
) -> None:
    plan, fresh = Mixture(labelled(sizes), 16, seed), Mixture(labelled(sizes), 16, seed)
    for before in (0, 1, 7):
        plan.draw(before)
    ours, theirs = plan.draw(step), fresh.draw(step)
    np.testing.assert_array_equal(ours.source, theirs.source)
    np.testing.assert_array_equal(ours.row, theirs.row)


@given(base=st.integers(0, 10**12), count=st.integers(1, 50), top=st.integers(1, 10**6), bottom=st.integers(1, 10**6))
def test_rounding_is_that_of_fractions(base: int, count: int, top: int, bottom: int) -> None:
    share = Fraction(min(top, bottom), bottom)
    values = np.arange(base, base + count, dtype=np.int64)
    expected = [int((value * share + Fraction(1, 2)) // 1) for value in values.tolist()]
    assert _rounded(values, share).tolist() == expected


def test_whole_shares_are_the_same_number_in_every_batch_and_window() -> None:
    plan = Mixture(labelled([100, 1000]), 128, 0, share=shares([100, 1000], 0.25))
    for step in range(20):
        draw = plan.draw(step)
        assert int(draw.source.sum()) == 32
        assert [int(part.sum()) for part in draw.source.reshape(-1, WINDOW)] == [8] * 4


def test_pairs_of_neighbours_are_of_mixed_origin_and_epochs_are_shuffled() -> None:
    plan = Mixture(labelled([64, 64]), 128, 0)
    pairs = Counter(tuple(pair) for step in range(50) for pair in plan.draw(step).source.reshape(-1, 2).tolist())
    same = (pairs[(0, 0)] + pairs[(1, 1)]) / sum(pairs.values())
    assert 0.4 < same < 0.56  # 15 of 31 other places of a window hold the same origin
    first, second = (plan.draw(step).row[plan.draw(step).source == 0].tolist() for step in (0, 1))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
    assert Mixture(labelled([64, 64]), 128, 1).draw(0).row.tolist() != plan.draw(0).row.tolist()


def test_class_balance_gives_rare_classes_their_share() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2], dtype=np.int64)
    plan = Mixture([labels], 30, 0, class_balanced=True)
    for step in range(10):
        assert np.bincount(labels[plan.draw(step).row]).tolist() == [10, 10, 10]


@pytest.mark.parametrize("fixed", [-0.1, 1.5])
def test_impossible_shares_are_refused(fixed: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        shares([1, 2], fixed)
    with pytest.raises(ValueError, match="none below 0"):
        Mixture(labelled([1, 2]), 4, 0, share=(Fraction(-1, 2), Fraction(3, 2)))
    with pytest.raises(ValueError, match="without a member"):
        Mixture(labelled([1, 0]), 4, 0)
