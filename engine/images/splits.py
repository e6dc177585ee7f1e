"""Which image is for training, validation and testing: exact counts, stratified by class, decided by content alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.spec.recipe import SplitSpec

NAMES = ("unused", "train", "validation", "test")
UNUSED, TRAIN, VALIDATION, TEST = range(4)

Ints = NDArray[np.int64]


def counts(split: SplitSpec, images: int, classes: int, *, given_test: bool) -> tuple[int, int, int]:
    """(train, validation, test) sizes among `images` good images that are not in a given test set.

    A whole number is a count, a fraction is of `images`, rounded half up; with a given test set split.test is not used.
    Raises DataError when they add up to more than there is, or when training would miss a class.
    """

    def size(share: int | float) -> int:
        return share if isinstance(share, int) else int(share * images + 0.5)

    validation, test = size(split.validation), 0 if given_test else size(split.test)
    left = images - validation - test
    train = left if split.train == "rest" else size(split.train)
    if train > left or left < 0:
        asked = validation + test + (train if split.train != "rest" else 0)
        raise DataError("split", f"asks for {asked:,} images, there are {images:,} good ones", "lower the counts")
    if train < classes:
        raise DataError(
            "split.train", f"{train:,} training images for {classes:,} classes", "every class needs one or more"
        )
    return train, validation, test


def apportion(total: int, weights: Ints, least: Ints, most: Ints) -> Ints:
    """Whole numbers that sum to `total`, near `total * weights / sum(weights)` by the largest remainder, within bounds.

    Ties go to the lower class. Requires sum(least) <= total <= sum(most).
    """
    quota = total * weights / max(1, int(weights.sum()))
    out = np.clip(np.floor(quota).astype(np.int64), least, most)
    missing = total - int(out.sum())
    while missing:
        room = (out < most) if missing > 0 else (out > least)
        urgency = np.where(room, (quota - out) * np.sign(missing), -np.inf)
        chosen = np.argsort(-urgency, kind="stable")[: min(abs(missing), int(room.sum()))]
        out[chosen] += np.sign(missing)
        missing = total - int(out.sum())
    return out


def allocate(split: SplitSpec, sizes: Ints, *, given_test: bool) -> tuple[Ints, Ints, Ints]:
    """(train, validation, test) images of each class, where class c has `sizes[c]` >= 1 good images; every class
    trains."""
    train, validation, test = counts(split, int(sizes.sum()), len(sizes), given_test=given_test)
    nothing = np.zeros_like(sizes)
    in_test = apportion(test, sizes, nothing, sizes - 1)
    in_validation = apportion(validation, sizes, nothing, sizes - 1 - in_test)
    in_train = apportion(train, sizes, nothing + 1, sizes - in_test - in_validation)
    return in_train, in_validation, in_test


def order_keys(seed: int, contents: Iterable[str]) -> NDArray[np.uint64]:
    """(N, 2) pseudo-random sort keys, the first column above the second, of N content digests."""
    salt = seed.to_bytes(8, "little")
    keys = bytearray()
    for content in contents:
        keys += hashlib.blake2b(content.encode(), digest_size=16, key=salt).digest()
    return np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)


def assign(
    split: SplitSpec,
    seed: int,
    labels: Ints,
    contents: Iterable[str],
    given_test: NDArray[np.bool_],
    classes: int,
    group: Ints | None = None,
) -> NDArray[np.int8]:
    """The split (an index of NAMES) of each image; rows of a given test set are all "test", and no other row is then.

    Images of one `group` (N,) (-1: of none) are in one split; counts are exact where the other images allow it.

    `labels` (N,) are class numbers, `contents` N digests of the pixels, distinct. In each class images are ordered by
    keyed hash; test images come from the front, validation images behind them, training images from the back. So the
    answer depends on nothing but content, class sizes, spec and seed, and the test set stays the same when only
    split.train changes.
    """
    out = np.full(len(labels), UNUSED, np.int8)
    out[given_test] = TEST
    pool = np.flatnonzero(~given_test)
    sizes = np.bincount(labels[pool], minlength=classes).astype(np.int64)
    in_train, in_validation, in_test = allocate(split, sizes, given_test=bool(given_test.any()))
    keys = order_keys(seed, contents)[pool]
    ordered = pool[np.lexsort((keys[:, 1], keys[:, 0]))]
    room = np.stack([np.zeros_like(sizes), in_train, in_validation, in_test])
    if group is not None and (group[pool] >= 0).any():
        _assign_groups(out, room, ordered, labels, group, rest=split.train == "rest")
        ordered = ordered[group[ordered] < 0]
    ordered = ordered[np.argsort(labels[ordered], kind="stable")]
    ends = np.cumsum(np.bincount(labels[ordered], minlength=classes))
    for c, rows in enumerate(np.split(ordered, ends[:-1])):
        _, train, validation, test = room[:, c].tolist()
        held_out = min(len(rows), test + validation)
        out[rows[:test]] = TEST
        out[rows[test:held_out]] = VALIDATION
        out[rows[held_out if split.train == "rest" else max(held_out, len(rows) - train) :]] = TRAIN
    return out


def _assign_groups(out: NDArray[np.int8], room: Ints, ordered: Ints, labels: Ints, group: Ints, *, rest: bool) -> None:
    """Give each whole group the split that its first image would have on its own, or the next one that has room for all
    of it.

    Fills `out` and takes from `room` (4, classes), the images that each split still needs. What training has no room
    for is unused.
    """
    rank = np.empty(len(ordered), np.int64)
    by_class = np.argsort(labels[ordered], kind="stable")
    sorted_labels = labels[ordered][by_class]
    rank[by_class] = np.arange(len(ordered)) - np.searchsorted(sorted_labels, sorted_labels)
    held_out, in_test = room[TEST] + room[VALIDATION], room[TEST].copy()
    grouped = np.flatnonzero(group[ordered] >= 0)
    rows_of: dict[int, list[int]] = {}
    for position in grouped.tolist():
        rows_of.setdefault(int(group[ordered[position]]), []).append(position)
    for positions in rows_of.values():
        rows = ordered[positions]
        needs = np.bincount(labels[rows], minlength=room.shape[1])
        first, c = rank[positions[0]], labels[rows[0]]
        wanted = (TEST, VALIDATION) if first < in_test[c] else (VALIDATION,) if first < held_out[c] else ()
        side = next((name for name in wanted if (needs <= room[name]).all()), TRAIN)
        for row in rows.tolist():
            if side != TRAIN or rest or room[TRAIN, labels[row]] > 0:
                out[row] = side
                room[side, labels[row]] -= 1


def refuse_empty_test(reasons: Iterable[str]) -> NoReturn:
    """The error for a given test set of which no image can be used; `reasons` are those of its images."""
    told = ", ".join(f"{reason} {count:,}" for reason, count in Counter(reasons).most_common(3)) or "it is empty"
    raise DataError(
        "source.test_path", f"no image of the test set can be used ({told})", "look at these, or leave it out"
    )


def require_all(sizes: Ints, names: Sequence[str], what: str = "image") -> None:
    """Refuse a class without a single image; raises DataError that names the first."""
    if len(names) and int(sizes.min()) == 0:
        name = names[int(np.argmin(sizes))]
        raise DataError("source", f"class {name!r} has no {what}", "add images, or leave the class out")
