"""A small ratio search that is really run: trials, resumption, one test reading, failures; and its early stopping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cluster.progress import PlainReporter
from engine.errors import DataError
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog, withheld
from engine.report import search_page as pages
from engine.spec import RunSpec, validate
from engine.storage import readings
from engine.storage.claim import read_spec
from engine.storage.store import Store, open_store
from engine.study.judge_reading import packed
from engine.study.search import search_plan
from engine.study.search import search_run as searches
from engine.study.search import search_trial as trials
from engine.study.search.search_plan import Point
from engine.study.search.search_run import search
from engine.study.search.suggest import searcher
from tests.support import outputs
from tests.support.outputs import Output
from tests.support.synthetic import Quiet

QUIET = PlainReporter


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


def _spec(ready: Output, search: dict[str, Any], **sections: Any) -> RunSpec:
    data = ready.spec.model_dump(mode="json") | {"split": {"train": 20, "validation": 30, "test": 25}}
    data |= {"judge": {"steps": 8, "width": 4}, "search": search, **sections}
    data["generate"] |= {"gate": {"min_std": 0}}
    return validate(data)


def _open(folder: Path, spec: RunSpec) -> tuple[Store, Catalog]:
    store = open_store(str(folder))
    return store, catalogs.build(spec, store, Quiet())


def _published(store: Store) -> dict[str, bytes]:
    return {entry.name: store.read(entry.name) for entry in store.list("results/search/")}


def _publish(
    store: Store, spec: RunSpec, point: Point, accuracies: list[float], folder: str = search_plan.TRIALS
) -> None:
    for seed, accuracy in zip(search_plan.seeds(spec), accuracies, strict=False):
        facts = {"accuracy": accuracy, "right": packed(np.arange(30) < 30 * accuracy)}
        store.create(search_plan.outcome(folder, point, seed), json.dumps(facts).encode())


def test_a_search_runs_resumes_grows_and_reads_the_test_split_once(ready: Output, tmp_path: Path) -> None:
    two = _spec(ready, {"ratios": [0, 0.5], "judge_seeds": 2})
    store, catalog = _open(tmp_path, two)
    result = search(two, catalog, store, QUIET())
    first = _published(store)
    tests = {name for name in first if name.startswith(f"{search_plan.TESTS}/")}
    assert len(first) == 4 + len(tests) + 2  # choice.json and test.json beside
    assert len(tests) == (2 if result["chosen"] == "0x" else 4)
    half = json.loads(first[f"{search_plan.TRIALS}/0.5x/0-0.json"])
    assert (half["real_images"], half["synthetic_images"]) == (20, 10)
    assert result["test"]["of_this_choice"]
    assert result["test"]["images"] == 25
    (noted,) = readings.readings(store)
    assert (noted["command"], len(noted["classifiers"])) == ("search", len(tests))
    assert search_plan.finished(two, store) == result
    kept = json.loads(store.read("results/search/choice.json"))["ratio"]
    other = Point(0.0 if kept else 0.5)
    store.remove(search_plan.outcome(search_plan.TRIALS, other, (0, 1)))
    again = search(two, catalog, store, QUIET())
    assert _published(store) == first  # the lost classifier came out the same, the others were not touched
    assert again == result
    three = _spec(ready, {"ratios": [0, 0.5, 1], "judge_seeds": 2})
    assert search_plan.finished(three, store) is None
    _publish(store, three, Point(1.0), [1.0, 1.0])  # a later ratio that is better
    grown = search(three, catalog, store, QUIET())
    assert grown["chosen"] == "1x"
    assert not grown["test"]["of_this_choice"]
    assert {k: v for k, v in grown["test"].items() if k != "of_this_choice"} == json.loads(store.read(searches.FINAL))
    assert any("not repeated for the new choice" in line for line in pages.lines(grown))
    assert {name: data for name, data in _published(store).items() if name in first} == first


def test_optuna_and_asha_on_accuracies_that_are_known(ready: Output, tmp_path: Path) -> None:
    """Every trial finds its classifiers published, so only Tune, Optuna and ASHA are at work."""
    asked = {"ratios": [0, 1, 2, 4, 8], "judge_seeds": 8, "method": "asha"}
    spec = _spec(ready, asked)
    store, catalog = _open(tmp_path, spec)
    level = {0.0: 0.5, 1.0: 0.9, 2.0: 0.2, 4.0: 0.1, 8.0: 0.05}
    for ratio, mean in level.items():
        _publish(store, spec, Point(ratio), [mean + 0.001 * k for k in range(8 if ratio < 2 else 4)])
    _publish(store, spec, Point(0.0), [0.5] * 8, search_plan.TESTS)
    _publish(store, spec, Point(1.0), [0.8] * 8, search_plan.TESTS)
    result = search(spec, catalog, store, QUIET())
    found = {point["ratio"]: point for point in result["points"]}
    assert result["chosen"] == "1x"
    assert [ratio for ratio, point in found.items() if not point["whole"]] == [2.0, 4.0, 8.0]
    assert all(store.exists(search_plan.stopped(Point(ratio))) for ratio in (2.0, 4.0, 8.0))
    assert "stopped after 4" in pages.markdown(result)
    before = _published(store)
    assert search(spec, catalog, store, QUIET()) == result
    assert _published(store) == before

    space = search_plan.space(spec)
    for ratio, mean in level.items():
        _publish(store, spec, Point(ratio), [mean] * 8)
    reporter = Quiet()
    searches._Session(spec, catalog, store, reporter).suggest(
        space, search_plan.by_generator(spec), searcher(space, [(Point(1.0), 0.9)], 0, "score"), 3
    )
    assert reporter.tasks["search: validation"].done == 3


def test_failed_trials_are_all_told_and_the_first_is_raised(ready: Output, tmp_path: Path) -> None:
    """A gate that nothing passes: every set is refused, with its own reason."""
    generate = ready.spec.model_dump(mode="json")["generate"] | {"gate": {"min_std": 200.0, "max_attempts": 1}}
    spec = _spec(ready, {"ratios": [1, 2], "judge_seeds": 1})
    spec = validate(spec.model_dump(mode="json") | {"generate": generate})
    store, catalog = _open(tmp_path, spec)
    _publish(store, spec, Point(0.0), [0.5])
    reporter = Quiet()
    with pytest.raises(DataError, match=r"2 of 2 trials failed, the first \(1x seed 0\)") as caught:
        search(spec, catalog, store, reporter)
    assert "\n" not in str(caught.value)
    assert [note.split(":")[0] for note in reporter.notes] == ["trial 1x seed 0 failed", "trial 2x seed 0 failed"]


def test_a_set_that_was_killed_while_it_was_given_its_fine_tune_can_be_begun_again(
    ready: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(ready, {})
    tuned, target = open_store(str(tmp_path / "tuned")), open_store(str(tmp_path / "set"))
    for name in ("match/mimeo.json", "match/model/weights.safetensors"):
        tuned.create(name, b"{}")
    read = type(tuned).read
    with monkeypatch.context() as patched:
        patched.setattr(
            type(tuned), "read", lambda store, name: 1 / 0 if name == "match/mimeo.json" else read(store, name)
        )
        with pytest.raises(ZeroDivisionError):
            trials._begin(target, spec, tuned)
    assert [entry.name for entry in target.list("match/")] == ["match/model/weights.safetensors"]
    trials._begin(target, spec, tuned)
    assert {entry.name for entry in target.list("match/")} == {entry.name for entry in tuned.list("match/")}
    assert read_spec(target) == spec


def test_trials_know_no_test_image(ready: Output, tmp_path: Path) -> None:
    spec = _spec(ready, {})
    _, catalog = _open(tmp_path, spec)
    assert catalog.split("test").num_rows == 25
    hidden = withheld(catalog)
    assert hidden.split("test").num_rows == 0
    for name in ("train", "validation"):
        assert hidden.split(name).equals(catalog.split(name))
