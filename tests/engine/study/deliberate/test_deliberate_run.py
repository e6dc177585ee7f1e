"""A small study that is really run: equal budgets, a common first round, resumed; its summary against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engine.cluster.progress import PlainReporter
from engine.errors import ConfigError
from engine.images import catalog as catalogs
from engine.report import ablation_page as pages
from engine.shards.verification import verify
from engine.spec import RunSpec, validate
from engine.statistics.nested import judge_seeds
from engine.storage import readings
from engine.storage.store import Store, open_store
from engine.study.deliberate import deliberate_run as studies
from engine.study.deliberate.anchor_choice import entropy_weights, folds
from engine.study.deliberate.deliberate_trial import Study, _weights, name_of, run, section, settings
from engine.study.judge_reading import packed
from engine.study.trial import Shared
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, fit
from engine.training.judge_model import probabilities
from tests.support import outputs
from tests.support.outputs import Output
from tests.support.synthetic import Quiet


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


def _spec(ready: Output, **asked: object) -> RunSpec:
    data = ready.spec.model_dump(mode="json")
    data["generate"] |= {"count": 22, "shard_size": 8, "num_inference_steps": 2}
    data["judge"] = {"steps": 10, "seeds": 2, "width": 8}
    data["deliberate"] = {"rounds": 3, "seeds": 2, "hard_guidance": 1.0, **asked}
    return validate(data)


def _study(ready: Output, spec: RunSpec, folder: Path) -> Study:
    store = open_store(str(folder))
    for entry in list(ready.store.list("catalog/")):
        store.create(entry.name, ready.store.read(entry.name))
    rng = np.random.default_rng(0)
    labels = ready.catalog.split("train")["label"].to_numpy().astype(np.int64)

    def images(labels: np.ndarray) -> Arrays:
        side = spec.images.size
        pixels = rng.integers(256, size=(len(labels), side, side, 3), dtype=np.uint8)
        return Arrays(pixels, labels, np.arange(len(labels)))

    shared = Shared(str(folder), ready.catalog, images(labels), images(labels[:30]))
    return Study(spec, shared)


def _run_seed(study: Study, store: Store) -> None:
    for arm in ("static", *section(study.spec).by):
        if not store.exists(name_of(0, arm)):
            store.create(name_of(0, arm), json.dumps(run(study, (0, arm), "cpu"), sort_keys=True).encode())


def test_arms_draw_as_many_images_from_a_common_first_round_and_resume(ready: Output, tmp_path: Path) -> None:
    spec = _spec(ready)
    study = _study(ready, spec, tmp_path)
    store = open_store(str(tmp_path))
    _run_seed(study, store)
    facts = {arm: json.loads(store.read(name_of(0, arm))) for arm in ("static", "entropy", "class_error")}
    assert facts["static"]["rounds"] == []
    for arm in ("entropy", "class_error"):
        assert [entry["images"] for entry in facts[arm]["rounds"]] == [7, 7]  # 22 = 8 + 7 + 7
        for number in (1, 2):
            sets = [
                open_store(str(tmp_path / f"trials/seed-0/{arm}-round-{number}-{part}")) for part in ("hard", "easy")
            ]
            assert all(not verify(one).faults for one in sets)
            plans = [json.loads(one.read("plan.json")) for one in sets]
            assert sum(plan["count"] for plan in plans) == 7
    assert all(len(own["scores"][kind]) == 2 for own in facts.values() for kind in ("synthetic", "mixed"))
    before = store.read(name_of(0, "static"))
    store.remove(name_of(0, "entropy"))
    _run_seed(study, store)
    assert json.loads(store.read(name_of(0, "entropy"))) == facts["entropy"]
    assert store.read(name_of(0, "static")) == before


def _fitted(study: Study, spec: RunSpec, drawn: Arrays, kept: np.ndarray, seed: int) -> object:
    """The judge's mixed arm on the real images `kept` and the drawn ones."""
    train = study.shared.train
    rows = np.flatnonzero(kept)
    real = Arrays(train.pixels[rows], train.labels[rows], np.arange(len(rows)))
    arms = Data(real, study.shared.held, drawn, len(drawn.labels), 10)
    return fit(Arm("mixed", 1), seed, spec.judge, arms)[0]


def test_images_are_judged_by_classifiers_that_were_not_trained_on_them_and_mix_as_the_judge_does(
    ready: Output, tmp_path: Path
) -> None:
    """The judge's own fit on the other folds is the oracle, whichever way it mixes."""
    found = {}
    for mixing in ("equal", "proportional"):
        data = _spec(ready, folds=3).model_dump(mode="json")
        data["judge"] |= {"mixing": mixing}
        spec = validate(data)
        study = _study(ready, spec, tmp_path / mixing)
        train = study.shared.train
        drawn = Arrays(train.pixels[:10], train.labels[:10], train.index[:10])
        fold = folds(train.labels, 3, np.random.default_rng([spec.seed, 10]))
        shares = np.zeros((2, len(train.labels), 10))
        for k in range(3):
            for j, seed in enumerate(judge_seeds(spec.seed, 2)):
                model = _fitted(study, spec, drawn, fold != k, seed)
                shares[j, fold == k] = probabilities(model, train.part().pixels[fold == k])  # type: ignore[arg-type]
        found[mixing] = _weights(study, spec, "entropy", drawn, "cpu")
        np.testing.assert_array_equal(found[mixing], entropy_weights(shares))
        wrong = (shares.argmax(2) != train.labels).mean(0)
        expected = np.array(
            [(wrong[train.labels == c].sum() + 1) / ((train.labels == c).sum() + 2) for c in train.labels]
        )
        np.testing.assert_allclose(_weights(study, spec, "class_error", drawn, "cpu"), expected)
        assert settings(spec).get("mixing", "equal") == mixing
    assert not np.array_equal(found["equal"], found["proportional"])


def test_memorised_images_look_easy_to_those_who_were_trained_on_them_and_not_out_of_fold(
    ready: Output, tmp_path: Path
) -> None:
    """Images of noise: nobody can know their class but by heart, so out of fold every class is wrong nine times in
    ten."""
    data = _spec(ready).model_dump(mode="json")
    data["judge"] |= {"steps": 150, "width": 16, "augment": "none", "seeds": 1}
    spec = validate(data)
    study = _study(ready, spec, tmp_path)
    train = study.shared.train
    both = Arrays(train.pixels[:1], train.labels[:1], train.index[:1])
    errors = _weights(study, spec, "class_error", both, "cpu")
    model = _fitted(study, spec, both, np.ones(len(train.labels), bool), judge_seeds(0, 1)[0])
    by_heart = (probabilities(model, train.part().pixels).argmax(1) != train.labels).mean()  # type: ignore[arg-type]
    assert by_heart < 0.2
    assert errors.mean() > 0.6


def test_the_test_split_is_read_by_the_choice_and_the_static_plan_with_fresh_seeds(
    ready: Output, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path))
    data = _spec(ready, by=["entropy"], rounds=2, folds=2).model_dump(mode="json")
    data |= {"split": {"train": 20, "validation": 30, "test": 25}}
    spec = validate(data)
    catalog = catalogs.build(spec, store, Quiet())
    result = studies.deliberate(spec, catalog, store, PlainReporter())
    names = {entry.name for entry in store.list("results/deliberate/")}
    arms = {"static", result["chosen"]}
    expected = {name_of(seed, arm) for seed in (0, 1) for arm in ("static", "entropy")}
    expected |= {name_of(seed, arm, "test") for seed in (1000, 1001) for arm in arms}
    assert names == expected | {"results/deliberate/choice.json", "results/deliberate/test.json"}
    assert (result["validation_images"], result["test"]["images"], result["test"]["seeds"]) == (30, 25, [1000, 1001])
    (noted,) = readings.readings(store)
    assert (set(noted["arms"]), len(noted["classifiers"])) == (arms, 4 * len(arms))
    assert studies.deliberate(spec, catalog, store, PlainReporter()) == result
    assert "Test split" in pages.markdown(result)


def test_the_summary_is_that_of_sums_by_hand(ready: Output) -> None:
    spec = _spec(ready, seeds=4, by=["entropy"])
    rng = np.random.default_rng(0)
    right = {
        (seed, arm): {kind: rng.random((2, 40)) < 0.8 for kind in ("synthetic", "mixed")}
        for seed in range(4)
        for arm in ("static", "entropy")
    }
    found = {
        key: {
            "scores": {kind: one.mean(1).tolist() for kind, one in own.items()},
            "right": {kind: [packed(row) for row in one] for kind, one in own.items()},
            "images": 40,
            "settings": {},
            "rounds": [],
        }
        for key, own in right.items()
    }
    result = studies.summary(spec, found)
    for kind in ("synthetic", "mixed"):
        static, own = (np.array([right[seed, arm][kind].mean() for seed in range(4)]) for arm in ("static", "entropy"))
        (entry,) = result["training_sets"][kind]["comparisons"]
        assert entry["difference"] == pytest.approx((own - static).mean())
        assert entry["interval"] == pytest.approx(list(stats.ttest_rel(own, static).confidence_interval(0.95)))


def test_what_cannot_work_is_refused_before_ray_starts(ready: Output) -> None:
    with pytest.raises(ConfigError, match=r"split\.validation: is 0"):
        studies.check(validate(_spec(ready).model_dump(mode="json") | {"split": {"train": 40, "test": 40}}))
    with pytest.raises(ConfigError, match="cannot be drawn in 30 rounds"):
        studies.check(_spec(ready, rounds=30))
