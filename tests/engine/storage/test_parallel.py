"""The bounded map keeps the order, works at once, and stops at the first error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from engine.storage.parallel import mapped


def test_order_is_kept_whatever_finishes_first() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    assert list(mapped(slow_when_even, range(300))) == [number * number for number in range(300)]


def test_items_run_at_once() -> None:
    barrier = threading.Barrier(4)
    assert list(mapped(lambda _: barrier.wait(timeout=10) >= 0, range(4), workers=4)) == [True] * 4


def test_few_items_are_in_flight() -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number

    results = mapped(lambda number: number, source(), workers=2)
    assert next(results) == 0
    assert taken <= 9
    results.close()
    assert taken <= 9


def test_the_first_error_ends_it() -> None:
    def fail(number: int) -> int:
        if number >= 5:
            raise KeyError(number)
        return number

    results = mapped(fail, range(1000), workers=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="5"):
        next(results)
