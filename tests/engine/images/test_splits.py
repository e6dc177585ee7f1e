"""Splits: exact, stratified, deterministic, never mixing; checked by counting, over random specs and class sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.images.listing import planned_labels
from engine.images.splits import NAMES, allocate, apportion, assign, counts
from engine.spec import validate
from engine.spec.recipe import SplitSpec

UNUSED, TRAIN, VALIDATION, TEST = (NAMES.index(name) for name in ("unused", "train", "validation", "test"))


def digests(n: int, salt: int = 0) -> list[str]:
    return [f"{i:08x}-{salt}" for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    shares=st.tuples(st.integers(0, 300), st.integers(0, 300), st.one_of(st.just("rest"), st.integers(2, 400))),
    given_count=st.integers(0, 40),
    seed=st.integers(0, 2**63 - 1),
)
def test_counts_are_exact_and_classes_keep_their_shares(
    sizes: list[int], shares: tuple[int, int, int | str], given_count: int, seed: int
) -> None:
    n, k = sum(sizes), len(sizes)
    validation, test, train = shares
    test = 0 if test == 1 else test
    validation = 0 if validation == 1 else validation
    split = SplitSpec(train=train, validation=validation, test=test)
    held_out = validation + (0 if given_count else test)
    wanted = n - held_out if train == "rest" else train
    labels = np.repeat(np.arange(k + 1), [*sizes, 0])
    labels = np.concatenate([labels, np.arange(given_count) % k]).astype(np.int64)
    given_test = np.arange(len(labels)) >= n
    if held_out + wanted > n or wanted < k:
        with pytest.raises(DataError):
            assign(split, seed, labels, digests(len(labels)), given_test, k)
        return
    made = assign(split, seed, labels, digests(len(labels)), given_test, k)

    assert (made[given_test] == TEST).all()
    main = made[~given_test]
    assert (main == TRAIN).sum() == wanted
    assert (main == VALIDATION).sum() == validation
    assert (main == TEST).sum() == (0 if given_count else test)
    per_class = np.array([[(main[labels[:n] == c] == s).sum() for s in (TRAIN, VALIDATION, TEST)] for c in range(k)])
    assert (per_class[:, 0] >= 1).all()
    if min(sizes) >= 8 and wanted >= n / 2:  # no class so small that the rule "every class trains" bends the shares
        ideal = np.array(sizes)[:, None] * np.array([wanted, validation, 0 if given_count else test]) / n
        assert (np.abs(per_class - ideal)[:, 2] < 1).all()
        assert (np.abs(per_class - ideal) < 3).all()

    order = np.random.default_rng(0).permutation(len(labels))
    again = assign(split, seed, labels[order], [digests(len(labels))[i] for i in order], given_test[order], k)
    assert np.array_equal(again, made[order])


def test_seed_and_content_decide_and_nothing_else() -> None:
    labels, none = np.arange(400) % 4, np.zeros(400, bool)
    split = SplitSpec(train=100, test=80)
    made = [assign(split, seed, labels, digests(400), none, 4) for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()
    assert (assign(split, 0, labels, digests(400, salt=1), none, 4) != made[0]).any()


def test_the_test_set_stays_when_only_the_training_size_changes() -> None:
    labels, none = np.arange(1797) % 10, np.zeros(1797, bool)
    small, large = (assign(SplitSpec(train=n, test=899), 0, labels, digests(1797), none, 10) for n in (100, 898))
    assert np.array_equal(small == TEST, large == TEST)
    assert (large[small == TRAIN] == TRAIN).all()


def test_fractions_round_half_up_and_rest_takes_what_is_left() -> None:
    assert counts(SplitSpec(test=0.5), 5, 2, given_test=False) == (2, 0, 3)
    assert counts(SplitSpec(test=0.2, validation=0.1), 100, 10, given_test=False) == (70, 10, 20)
    assert counts(SplitSpec(test=0.2, validation=0.1), 100, 10, given_test=True) == (90, 10, 0)
    assert counts(SplitSpec(train=0.5, test=0.5), 10, 2, given_test=False) == (5, 0, 5)
    assert counts(SplitSpec(train=100, test=899), 1797, 10, given_test=False) == (100, 0, 899)


def test_too_much_and_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="asks for 1,998 images, there are 1,797"):
        counts(SplitSpec(train=1099, test=899), 1797, 10, given_test=False)
    with pytest.raises(DataError, match=r"split.train: 9 training images for 10 classes"):
        counts(SplitSpec(train=9, test=899), 1797, 10, given_test=False)
    with pytest.raises(DataError):
        counts(SplitSpec(test=1), 100, 10, given_test=False)


def test_a_class_of_one_image_trains() -> None:
    train, validation, test = allocate(SplitSpec(test=0.4, validation=0.2), np.array([1, 50, 49]), given_test=False)
    assert (train[0], validation[0], test[0]) == (1, 0, 0)
    assert (train.sum(), validation.sum(), test.sum()) == (40, 20, 40)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=8), st.data()
)
def test_apportion_keeps_sum_and_bounds_and_is_a_largest_remainder(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    weights, least, spread = (np.array(column) for column in zip(*rows, strict=True))
    most = least + spread
    total = data.draw(st.integers(int(least.sum()), int(most.sum())))
    made = apportion(total, weights, least, most)
    assert made.sum() == total
    assert (made >= least).all()
    assert (made <= most).all()
    if weights.sum():
        quota = total * weights / weights.sum()
        if (least == 0).all() and (np.ceil(quota) <= most).all():  # unbounded: Hamilton's method
            assert (np.abs(made - quota) < 1).all()
            up = quota[(made > quota)] % 1
            down = quota[(made < quota)] % 1
            assert not len(up) or not len(down) or up.min() >= down.max() - 1e-9


def test_planned_labels_of_the_digits() -> None:
    spec = validate(
        {"name": "t", "source": {"kind": "digits"}, "split": {"train": 100, "test": 899}, "images": {"size": 8}}
    )
    labels, names = planned_labels(spec)
    assert names == tuple("0123456789")
    assert np.array_equal(np.bincount(labels), np.full(10, 10))


@pytest.mark.parametrize("train", ["rest", 0.4])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_groups_stay_together_and_counts_stay_exact_where_they_can(share: float, train: str | float) -> None:
    rng = np.random.default_rng(round(share * 10))
    for trial in range(60):
        classes = int(rng.integers(2, 5))
        labels = np.concatenate([np.arange(classes).repeat(3), rng.integers(0, classes, int(rng.integers(20, 150)))])
        count = len(labels)
        group = np.where(rng.random(count) < share, rng.integers(0, count // 3, count), -1)
        contents = [f"{trial}-{i}" for i in range(count)]
        given = np.zeros(count, bool)
        split = SplitSpec(test=0.2, validation=0.1, train=train)
        plain = assign(split, trial, labels, contents, given, classes)
        made = assign(split, trial, labels, contents, given, classes, group)
        for number in np.unique(group[group >= 0]):
            assert len(set(made[group == number].tolist()) - {UNUSED}) <= 1
        assert (np.bincount(labels[made == TRAIN], minlength=classes) > 0).all()
        assert train != "rest" or (made != UNUSED).all()
        if share == 0:
            assert np.array_equal(made, plain)
        if share <= 0.1:
            assert np.array_equal(np.bincount(made, minlength=4), np.bincount(plain, minlength=4))
