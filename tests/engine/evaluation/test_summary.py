"""The summary of a judged run and its table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from engine.evaluation.plainly import sentences
from engine.evaluation.run_summary import arm_images, arm_label, bracket, percent, summary, table
from engine.spec import RunSpec, spec_hash
from engine.storage.store import Store
from tests.support.judged import publish_outcomes
from tests.support.synthetic import claimed, digits_spec, noisy_digits, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
SHARES = {
    "real": [0.95, 0.95, 1.0],
    "synthetic_1x": [0.85, 0.85, 0.85],
    "synthetic_10x": [0.90, 0.95, 0.95],
    "mixed_1x": [0.96, 0.95, 0.96],
    "mixed_10x": [0.95, 1.0, 1.0],
    "photocopy_10x": [0.95, 0.95, 1.0],
    "augmented": [0.93, 0.93, 0.93],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[dict, dict]:
    """The summary and the judged results of a planted output."""
    store, spec, judged = made(tmp_path_factory.mktemp("summary"))
    return summary(spec, store), judged


def made(folder: Path) -> tuple[Store, RunSpec, dict]:
    judge = {"multiples": [1, 10], "seeds": 3, "controls": ["photocopy", "augmented", "reconstructed"]}
    spec = digits_spec(split={"train": 12}, judge=judge, resources={"price_per_hour": 3})
    store, catalog = claimed(folder, spec)
    write_shards(store, spec, *noisy_digits(120), catalog.class_names, lost=(5,))
    return store, spec, publish_outcomes(store, spec, catalog, SHARES)


def test_the_summary_has_what_a_reader_looks_for(tmp_path: Path) -> None:
    store, spec, judged = made(tmp_path)
    store.replace("results/seconds.json", b'{"judge": 31.5}')
    found = summary(spec, store)
    assert found == json.loads(store.read("results/summary.json"))
    for key in SHARES:
        assert found[f"{key}_accuracy"] == judged["arms"][key]["mean"]
        assert found[f"{key}_accuracy_interval"] == judged["arms"][key]["interval"]
    assert found["synthetic_10x_ratio"] == pytest.approx(found["synthetic_10x_accuracy"] / found["real_accuracy"])
    assert len(found["mixed_1x_ratio_interval"]) == 2
    counts = {key: found[key] for key in ("n_train", "n_test", "planned", "synthetic_images", "quarantined", "shards")}
    assert counts == {
        "n_train": 12,
        "n_test": 200,
        "planned": 120,
        "synthetic_images": 119,
        "quarantined": 1,
        "shards": 3,
    }
    assert found["spec_hash"] == spec_hash(spec)
    assert found["bad_real_images"] == 0
    assert found["seconds"] == {"judge": 31.5}
    assert found["cost"]["shards_of_unknown_cost"] == 3
    assert (found["cost"]["price_per_hour"], found["cost"]["price_per_1000_accepted"]) == (3.0, None)

    console = Console(width=80, record=True)
    console.print(table(found))
    text = console.export_text()
    low, high = found["synthetic_10x_ratio_interval"]
    ratio = f"{found['synthetic_10x_ratio']:.3f} [{low:.3f}, {high:.3f}]"
    lines = {line.split("  ")[0].strip(): line.rstrip() for line in text.splitlines()}
    rows = [
        "real",
        "synthetic 1x",
        "synthetic 10x",
        "real + synthetic 1x",
        "real + synthetic 10x",
        "photocopies 10x",
        "augmented real",
    ]
    assert [name for name in lines if name in rows] == rows
    copies = f"{found['synthetic_10x_copy_share'] * 100:.1f}"
    assert re.search(rf"\]  {re.escape(ratio)} +{copies} +96.7$", lines["synthetic 10x"])
    assert lines["real"].endswith("]")
    told = " ".join(text.split())
    assert "1x is 12 images; 95 % intervals over judge seeds, one generator seed" in told
    assert "left out: real through VAE (the generator has no VAE)" in told


def test_copies_and_controls_stand_beside_every_arm_with_synthetic_images(run: tuple[dict, dict]) -> None:
    found, judged = run
    copies = judged["copies"]
    for key, multiple in (("synthetic_1x", "1"), ("mixed_10x", "10")):
        own = copies["sets"][multiple]
        assert found[f"{key}_copy_share"] == own["pixels"]["share"]
        assert found[f"{key}_copy_share_interval"] == own["pixels"]["interval"]
        assert found[f"{key}_copy_share_features"] == own["features"]["share"]
        assert found[f"{key}_membership_auc"] == own["pixels"]["auc"]
        assert found[f"{key}_best_control"] == "photocopy_10x"
    assert "real_copy_share" not in found
    assert "photocopy_10x_best_control" not in found
    differences = np.subtract(found_values(judged, "photocopy_10x"), found_values(judged, "synthetic_10x"))
    interval = stats.ttest_1samp(differences, 0).confidence_interval(1 - 0.05 / 2)  # two controls
    assert found["synthetic_10x_control_difference"] == pytest.approx(differences.mean())
    assert found["synthetic_10x_control_difference_interval"] == pytest.approx([interval.low, interval.high])
    assert found["synthetic_1x_control_finding"] == "better"
    assert found["mixed_10x_control_finding"] == "not told apart"


def found_values(judged: dict, key: str) -> list[float]:
    return judged["arms"][key]["values"]


def test_a_beaten_set_is_called_that_in_one_sentence(run: tuple[dict, dict]) -> None:
    found, _ = run
    _, synthetic, mixed = sentences(found)
    assert synthetic.startswith(
        "Photocopies of the training images (with pixel noise of the same distance) may train as good a classifier as "
        "synthetic 10x (3 judge seeds cannot tell them apart): 96.7 % against 93.3 % "
        "accuracy, a difference of +3.3 points ["
    )
    assert "real + synthetic 10x" in mixed
    beaten = {**found, "synthetic_10x_control_finding": "better"}
    assert " train a better classifier than synthetic 10x: 96.7 % against 93.3 %" in sentences(beaten)[1]
    above = {**found, "synthetic_10x_control_finding": "worse"}
    assert sentences(above)[1].startswith(
        "No control trains as good a classifier as synthetic 10x; the best is photocopies:"
    )
    copying = {**found, "synthetic_10x_copies": "copies", "synthetic_10x_copy_share": 0.82}
    assert sentences(copying)[0].startswith("The synthetic set holds copies of its training images: 82.0 % [")
    older = {
        key: value for key, value in found.items() if "copy" not in key and "copies" not in key and "control" not in key
    }
    assert sentences(older) == []


def test_words_for_arms_and_intervals() -> None:
    arm = {"kind": "mixed", "multiple": 10, "real_images": 1000, "synthetic_images": 10000}
    assert arm_label(arm) == "real + synthetic 10x"
    assert arm_images(arm) == "1,000 + 10,000"
    assert bracket([0.951, 0.979], 100) == " [95.1, 97.9]"
    assert bracket([None, None]) == ""
    assert percent(0.9649) == "96.5 %"
