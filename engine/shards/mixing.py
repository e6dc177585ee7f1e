"""Which image comes when: exact shares of several sources in every batch, no image twice before all came once, any step
alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
WINDOW = 32
KEPT_ORDERS = 2


@dataclass(frozen=True)
class Draw:
    """One global batch: `source` (B,) which source each row comes from, `row` (B,) which member of that source."""

    source: Ints
    row: Ints


def shares(sizes: Sequence[int], fixed: float | None = None) -> tuple[Fraction, ...]:
    """Each source's share of what is drawn: in proportion to its size, or `fixed` for all but the first together.

    Exact fractions: 0.3 is 3/10. With one source its share is 1. Raises ValueError for a share outside 0 to 1.
    """
    total = sum(sizes)
    if fixed is None or len(sizes) == 1:
        return tuple(Fraction(size, total) for size in sizes)
    if not 0 <= fixed <= 1:
        raise ValueError(f"share {fixed:g} is not between 0 and 1")
    share = Fraction(str(fixed))
    return (1 - share, *(share * Fraction(size, total - sizes[0]) for size in sizes[1:]))


class Mixture:
    """Endless batches from several sources; `draw(step)` is a pure function of the arguments here and the step.

    After every single draw, and so after every batch, the number drawn from each of two sources is within 1/2 of its
    share of all draws (within 1 for three), and a batch whose share is a whole number has just that number. Inside a
    source an epoch is a random permutation of its members; `class_balanced` walks through a random order of the classes
    instead, again and again, and through a permutation of each class. Rows of a batch are shuffled inside windows of
    32, so that every window holds the exact shares too and a rank that takes a slice of the batch sees the same
    mixture.
    """

    def __init__(
        self,
        labels: Sequence[Ints],
        batch: int,
        seed: int,
        *,
        share: Sequence[Fraction] | None = None,
        class_balanced: bool = False,
    ) -> None:
        """`labels[s]` (N_s,) are the classes of source s's members, N_s >= 1; `share` sums to 1, by default N_s / sum
        N."""
        if any(len(own) == 0 for own in labels):
            raise ValueError("a source without a member cannot be drawn from")
        self.batch = batch
        self._seed = seed
        self._share = tuple(share) if share is not None else shares([len(own) for own in labels])
        if sum(self._share) != 1 or min(self._share) < 0 or len(self._share) != len(labels):
            raise ValueError("shares must be one a source, none below 0, and add up to 1")
        self._members: list[list[Ints]] = [
            _by_class(own) if class_balanced else [np.arange(len(own), dtype=np.int64)] for own in labels
        ]
        self._orders: dict[tuple[int, int], dict[int, Ints]] = {}

    def counts(self, draws: Ints) -> Ints:
        """(T, S): how many of the first `draws[t]` (rising, close to each other) come from each source."""
        out = np.empty((len(draws), len(self._share)), np.int64)
        rest, left = draws, Fraction(1)
        for number, share in enumerate(self._share):
            out[:, number] = _rounded(rest, share / left) if left else 0
            rest, left = rest - out[:, number], left - share
        return out

    def draw(self, step: int) -> Draw:
        """The global batch of a step, from 0."""
        first = step * self.batch
        counts = self.counts(np.arange(first, first + self.batch + 1, dtype=np.int64))
        source = np.diff(counts, axis=0).argmax(axis=1)
        row = np.empty(self.batch, np.int64)
        for number in range(len(self._share)):
            low, high = int(counts[0, number]), int(counts[-1, number])
            row[source == number] = self._rows(number, low, high)
        keys = self._rng("batch", step).random(self.batch)
        order = np.lexsort((keys, np.arange(self.batch) // WINDOW))
        return Draw(source[order], row[order])

    def _rows(self, source: int, low: int, high: int) -> Ints:
        """Members of draws low .. high-1 of a source."""
        streams = self._members[source]
        if len(streams) == 1:
            return streams[0][self._walk(source, 0, len(streams[0]), np.arange(low, high, dtype=np.int64))]
        draws = np.arange(low, high, dtype=np.int64)
        chosen, turn = self._walk(source, -1, len(streams), draws), draws // len(streams)
        out = np.empty(len(draws), np.int64)
        for stream in np.unique(chosen):
            mine = chosen == stream
            out[mine] = streams[stream][self._walk(source, int(stream), len(streams[stream]), turn[mine])]
        return out

    def _walk(self, source: int, stream: int, size: int, draws: Ints) -> Ints:
        """Where draws `draws` (rising) of a stream of `size` members fall: one random permutation after the other."""
        epochs, places = np.divmod(draws, size)
        out = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            out[mine] = self._order(source, stream, size, int(epoch))[places[mine]]
        return out

    def _order(self, source: int, stream: int, size: int, epoch: int) -> Ints:
        """The permutation of one epoch; the newest two of each stream are kept."""
        kept = self._orders.setdefault((source, stream), {})
        if epoch not in kept:
            kept[epoch] = self._rng("epoch", source, stream, epoch).permutation(size)
            while len(kept) > KEPT_ORDERS:
                kept.pop(next(iter(kept)))
        return kept[epoch]

    def _rng(self, *parts: int | str) -> np.random.Generator:
        text = "\x1f".join(map(str, (self._seed, *parts)))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def _by_class(labels: Ints) -> list[Ints]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _rounded(values: Ints, share: Fraction) -> Ints:
    """round(values * share), halves up, exactly: integers only, and the large part of the product in Python's."""
    above, below = 2 * share.numerator, 2 * share.denominator
    base = int(values[0])
    quotient, remainder = divmod(base * above + share.denominator, below)
    return quotient + (remainder + (values - base) * above) // below
