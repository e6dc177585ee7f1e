"""What Ray Tune pickles of a run holds no terminal, lock or open file."""

from __future__ import annotations

import threading

from ray import cloudpickle

from engine.study.tuning import _watch


def test_what_watches_trials_can_be_pickled_whatever_it_tells() -> None:
    lock, seen = threading.Lock(), []
    watch = _watch(lambda: seen.append(lock.locked()), lambda config, result: seen.append((config, result)))
    assert cloudpickle.dumps(watch)

    class Trial:
        config, last_result = {"a": 1}, None

    watch.on_trial_complete(0, [], Trial())
    watch.on_trial_error(0, [], Trial())
    assert seen == [({"a": 1}, {}), False, False]
