"""Ray Tune's edges: what it pickles of a run holds no terminal or lock, and a signal leaves it as what the signal raised."""

from __future__ import annotations

import threading

import pytest
from ray import cloudpickle

from engine.study.tuning import _fit, _watch


def test_what_watches_trials_can_be_pickled_whatever_it_tells() -> None:
    lock, seen = threading.Lock(), []
    watch = _watch(lambda: seen.append(lock.locked()), lambda config, result: seen.append((config, result)))
    assert cloudpickle.dumps(watch)

    class Trial:
        config, last_result = {"a": 1}, None

    watch.on_trial_complete(0, [], Trial())
    watch.on_trial_error(0, [], Trial())
    assert seen == [({"a": 1}, {}), False, False]


def test_a_signal_in_compiled_code_leaves_as_itself() -> None:
    class Terminated(BaseException):
        pass

    def fit() -> None:
        raise SystemError("returned a result with an exception set") from Terminated()

    with pytest.raises(Terminated):
        _fit(fit)
    with pytest.raises(SystemError):
        _fit(lambda: (_ for _ in ()).throw(SystemError("of its own")))
