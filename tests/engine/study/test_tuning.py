"""Ray Tune's edges: what it pickles of a run holds no terminal or lock, and a signal leaves it as what the signal
raised."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from engine.cluster.progress import PlainReporter
from engine.errors import DataError
from engine.spec.recipe import ResourcesSpec
from engine.study.tuning import _watch, every
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


def trial(config: dict[str, Any], report: Any, parameters: Any, device: str) -> None:
    """Marks each attempt; the kind of its key says how it ends."""
    import torch

    place, kind = Path(parameters["folder"]) / config["kind"], config["kind"]
    with place.open("a") as file:
        file.write(f"{device} {torch.get_num_threads()}\n")
    if kind == "killed once" and len(place.read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "finding":
        raise DataError("sample 3", "is broken", "look at it")
    if kind == "bug":
        raise KeyError("not there")
    report(1.0)


def _ran(folder: Path, *kinds: str) -> list[int]:
    """Run these trials; how often each was begun."""
    parameters, resources = {"folder": str(folder)}, ResourcesSpec(device="cpu")
    every(trial, "kind", kinds, parameters, resources, PlainReporter(), "trials")
    return [len((folder / kind).read_text().splitlines()) for kind in kinds]


def test_a_trial_whose_process_was_killed_begins_again(ray_cluster: None, tmp_path: Path) -> None:
    assert _ran(tmp_path, "killed once", "good") == [2, 1]
    assert (tmp_path / "good").read_text() == f"cpu {ResourcesSpec().threads}\n"


def test_findings_and_bugs_of_a_trial_are_raised_as_themselves_and_not_tried_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"^kind finding: sample 3: is broken; look at it$"):
        _ran(tmp_path, "finding", "good")
    assert [len((tmp_path / kind).read_text().splitlines()) for kind in ("finding", "good")] == [1, 1]
    with pytest.raises(KeyError, match="not there"):
        _ran(tmp_path, "bug")
    assert len((tmp_path / "bug").read_text().splitlines()) == 1
