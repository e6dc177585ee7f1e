"""A whole evaluation on real digits and planted synthetic ones: pieces, resumption, statistics, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError, DataError
from engine.evaluation import classifier_evaluation as evaluation
from engine.evaluation import classifiers, units
from engine.evaluation.classifiers import Named
from engine.evaluation.evaluation_precheck import check
from engine.evaluation.ood import right
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.classifier import TrainSpec
from engine.statistics.comparison import compare
from engine.storage.store import Store, open_store
from engine.training import judge_fit, judge_training
from engine.training.classifier import classifier_models, saved
from engine.training.judge_data import real_images
from tests.support.synthetic import Quiet, claimed, digits_spec, noisy_digits, write_shards

ASKED: dict[str, Any] = {
    "sets": {"ones_and_twos": {"source": {"kind": "mnist"}, "classes": {"1": "1", "2": "2"}}},
    "corruptions": {"kinds": ["jpeg", "gaussian_noise"], "severities": [1, 5]},
    "gap": {"images": 40, "folds": 2, "dimensions": 2, "steps": 5},
    "arms": ["real", "synthetic"],
}


def with_asked(spec: RunSpec, **changes: Any) -> RunSpec:
    data = spec.model_dump(mode="json")
    data["evaluate"] = {**ASKED, **changes}
    return RunSpec.model_validate(data)


@pytest.fixture(scope="module")
def output(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[RunSpec, Store, Catalog, dict[str, Any]]:
    """Evaluated once by Ray workers."""
    spec = with_asked(digits_spec())
    store, catalog = claimed(tmp_path_factory.mktemp("evaluated") / "run", spec)
    pixels, labels = noisy_digits(spec.generate.count)
    write_shards(store, spec, pixels, labels, catalog.class_names)
    return spec, store, catalog, evaluation.evaluate(spec, catalog, store, Quiet())


def test_judges_are_those_of_the_judge_verb(output: tuple[RunSpec, Store, Catalog, dict[str, Any]]) -> None:
    spec, store, catalog, result = output
    data = judge_training.images(spec, catalog, store, Quiet(), 2)
    for arm in (judge_fit.Arm("real"), judge_fit.Arm("synthetic", 2)):
        for seed in (0, 1):
            expected = judge_fit.judge_one(arm, seed, spec.judge, data).accuracy
            assert result["sets"]["test"]["arms"][arm.key]["values"][seed] == pytest.approx(expected, abs=1e-9)


def test_it_holds_what_was_asked_for(output: tuple[RunSpec, Store, Catalog, dict[str, Any]]) -> None:
    _, store, _, result = output
    assert json.loads(store.read(evaluation.RESULT)) == result
    assert result["seeds"] == {"real": [0, 1], "synthetic_1x": [0, 1], "synthetic_2x": [0, 1]}
    assert list(result["sets"]) == ["test", "ones_and_twos"]
    other = result["sets"]["ones_and_twos"]
    assert (other["images"], other["classes"], other["restricted"]) == (1000, ["1", "2"], True)
    assert sum(other["left_out"].values()) == 4000
    assert other["arms"]["real"]["mean"] > 0.4  # of two classes
    values = {arm: one["values"] for arm, one in other["arms"].items()}
    made = [arm for arm in values if arm != "real"]
    assert other["comparisons"] == [entry.to_json() for entry in compare(values, "real", one_generator=made)]
    noise = result["corruptions"]["kinds"]["gaussian_noise"]
    of_levels = np.mean([noise["severities"][level]["real"] for level in ("1", "5")])
    assert noise["arms"]["real"]["mean"] == pytest.approx(of_levels)
    kinds = result["corruptions"]["kinds"].values()
    assert result["corruptions"]["mean"]["arms"]["real"]["mean"] == pytest.approx(
        np.mean([one["arms"]["real"]["mean"] for one in kinds])
    )
    assert "not the published" in result["corruptions"]["note"]
    pair = result["gap"]["pairs"]["synthetic"]
    assert len(pair["classes"]) == 10
    assert len(pair["features"]["values"]) == 2


def test_a_piece_is_the_same_without_ray(output: tuple[RunSpec, Store, Catalog, dict[str, Any]]) -> None:
    spec, store, catalog, _ = output
    assert spec.evaluate is not None
    listed = classifiers.listed(spec, store)
    opened = {one.name: classifiers.load(one, spec, store, catalog.class_names, "cpu") for one in listed}
    seeds = {one.name: one.seed for one in listed}
    work = units.Work(spec, spec.evaluate, catalog, store, opened, seeds, "cpu")
    for unit in units.units(spec.evaluate, listed):
        if unit.kind != "gap" or unit.name == "real-0":
            assert json.loads(json.dumps(units.make(unit, work))) == json.loads(store.read(unit.path)), unit


def test_a_finished_evaluation_is_known_and_another_one_keeps_equal_pieces(
    output: tuple[RunSpec, Store, Catalog, dict[str, Any]],
) -> None:
    spec, store, _, result = output
    assert evaluation.finished(spec, store) == result
    changed = with_asked(spec, sets={})
    assert evaluation.finished(changed, store) is None
    listed = classifiers.listed(spec, store)
    assert spec.evaluate is not None
    assert changed.evaluate is not None
    old, new = ({unit.path for unit in units.units(s.evaluate, listed)} for s in (spec, changed))
    assert new < old
    assert len(old - new) == 1


def test_an_output_of_saved_classifiers_is_evaluated_with_these(
    output: tuple[RunSpec, Store, Catalog, dict[str, Any]], tmp_path: Path
) -> None:
    spec, _, catalog, _ = output
    store = open_store(str(tmp_path))
    assert not any(one.saved for one in classifiers.listed(spec, store))
    section = TrainSpec(model="cnn")
    for arm, seed, selected in (("real", 0, "last"), ("mixed_1x", 12, "last"), ("mixed_1x", 13, None)):
        facts = {"arm": arm, "seed": seed, "selected": selected, "train": section.model_dump(mode="json")}
        facts |= {"class_names": list(catalog.class_names), "size": spec.images.size, "made_from": {}}
        model = classifier_models.build(section, spec.images.size, len(catalog.class_names))
        saved.save(store, f"{arm}-{seed}-0a1b2c3d", "last", model, facts)
    listed = classifiers.listed(spec, store)
    assert [(one.arm, one.seed) for one in listed] == [("mixed_1x", 12), ("real", 0)]  # 13 is not finished
    assert all(one.saved for one in listed)
    opened = classifiers.load(listed[1], spec, store, catalog.class_names, "cpu")
    assert opened.class_names == catalog.class_names
    pixels = np.zeros((3, spec.images.size, spec.images.size, 3), np.uint8)
    assert opened.probabilities(pixels).sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    with pytest.raises(DataError, match="was trained on other classes"):
        classifiers.load(listed[0], spec, store, ("a", "b"), "cpu")


def test_kept_weights_give_the_judges_answers(output: tuple[RunSpec, Store, Catalog, dict[str, Any]]) -> None:
    spec, store, catalog, result = output
    one = classifiers.load(Named("real-0", "real", 0, False), spec, store, catalog.class_names, "cpu")
    test = real_images(spec, catalog.split("test"), Quiet().task("x", 1), same_codec=False)
    assert right(one, test.pixels, test.labels).mean() == result["sets"]["test"]["arms"]["real"]["values"][0]
    probabilities = one.probabilities(test.pixels)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(1) == pytest.approx(np.ones(len(test.labels)), abs=1e-5)
    assert one.features(test.pixels).shape == (200, 2 * spec.judge.width)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sets": {}, "corruptions": None, "gap": None}, "evaluate: asks for nothing"),
        ({"sets": {"m": {"source": {"kind": "mnist"}, "classes": {"1": "one"}}}}, "'one' is no class of the run"),
        ({"sets": {"m": {"source": {"kind": "mnist"}, "classes": {"x": "1"}}}}, "'x' is no class of the set"),
        ({"sets": {"m": {"source": {"kind": "folder", "path": "/nowhere"}}}}, "evaluate.sets.m.source.path"),
    ],
)
def test_faults_are_found_before_anything_starts(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    from engine.storage.store import open_store

    with pytest.raises((ConfigError, DataError)) as caught:
        check(with_asked(digits_spec(), **changes), open_store(str(tmp_path / "new")))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_test_images_is_refused(tmp_path: Path) -> None:
    from engine.storage.store import open_store

    spec = with_asked(digits_spec(split={"test": 0}))
    with pytest.raises(ConfigError, match="evaluate: needs a test split"):
        check(spec, open_store(str(tmp_path / "new")))
    with pytest.raises(ConfigError, match="evaluate: is not in the recipe"):
        check(digits_spec(), open_store(str(tmp_path / "new")))


def test_a_gap_takes_the_seed_of_its_classifier_whatever_the_name_ends_in(
    output: tuple[RunSpec, Store, Catalog, dict[str, Any]],
) -> None:
    spec, store, catalog, _ = output
    assert spec.evaluate is not None
    one = classifiers.load(Named("real-0", "real", 0, False), spec, store, catalog.class_names, "cpu")

    def values(name: str, seed: int) -> Any:
        work = units.Work(spec, spec.evaluate, catalog, store, {name: one}, {name: seed}, "cpu")
        return units.make(units.Unit("gap", name, "x"), work)["pairs"]["synthetic"]["pixels"]

    published = {unit.name: unit.path for unit in units.units(spec.evaluate, classifiers.listed(spec, store))}
    expected = json.loads(store.read(published["real-0"]))["pairs"]["synthetic"]["pixels"]
    assert values("real-0-12345678", 0) == values("real-0-1234567a", 0) == expected
    assert values("real-7-12345678", 7) != expected


def test_too_few_images_for_the_folds_are_refused(output: tuple[RunSpec, Store, Catalog, dict[str, Any]]) -> None:
    spec, store, catalog, _ = output
    changed = with_asked(spec, gap={"images": 40, "folds": 50})
    assert changed.evaluate is not None
    one = classifiers.load(Named("real-0", "real", 0, False), spec, store, catalog.class_names, "cpu")
    work = units.Work(changed, changed.evaluate, catalog, store, {"real-0": one}, {"real-0": 0}, "cpu")
    with pytest.raises(DataError, match="images a class in the scarcest set, for 50 folds"):
        units.make(units.Unit("gap", "real-0", "x"), work)
