"""Ray Tune's edges: what it pickles of a run holds no terminal or lock, and a signal leaves it as what the signal
raised."""

from __future__ import annotations

import signal
import threading

import pytest
from ray import cloudpickle

from engine.study.tuning import _watch
from engine.training.setup import beside


def test_what_watches_trials_can_be_pickled_whatever_it_tells() -> None:
    lock, seen = threading.Lock(), []
    watch = _watch(lambda: seen.append(lock.locked()), lambda config, result: seen.append((config, result)))
    assert cloudpickle.dumps(watch)

    class Trial:
        config, last_result = {"a": 1}, None

    watch.on_trial_complete(0, [], Trial())
    watch.on_trial_error(0, [], Trial())
    assert seen == [({"a": 1}, {}), False, False]


def test_a_signal_ends_the_wait_for_ray_at_once() -> None:
    class Terminated(BaseException):
        pass

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGALRM, end)
    released = threading.Event()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Terminated):
            beside(lambda: released.wait(60))
        assert not released.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        released.set()


def test_what_ran_beside_answers_and_raises_as_itself() -> None:
    assert beside(lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        beside(lambda: {}["x"])
