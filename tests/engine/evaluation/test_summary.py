"""The summary of a judged run and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from engine.evaluation.summary import arm_images, arm_label, bracket, percent, summary, table
from engine.spec import spec_hash
from tests.support.judged import publish_outcomes
from tests.support.synthetic import claimed, digits_spec, noisy_digits, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
SHARES = {
    "real": [0.95, 0.94, 0.96],
    "synthetic_1x": [0.90, 0.88, 0.90],
    "synthetic_10x": [0.94, 0.94, 0.95],
    "mixed_1x": [0.96, 0.95, 0.96],
    "mixed_10x": [0.96, 0.96, 0.97],
}


def test_the_summary_has_what_a_reader_looks_for(tmp_path: Path) -> None:
    spec = digits_spec(split={"train": 12}, judge={"multiples": [1, 10], "seeds": 3})
    store, catalog = claimed(tmp_path, spec)
    write_shards(store, spec, *noisy_digits(120), catalog.class_names, lost=(5,))
    judged = publish_outcomes(store, spec, catalog, SHARES)
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

    console = Console(width=100, record=True)
    console.print(table(found))
    text = console.export_text()
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == [
        "real", "synthetic 1x", "synthetic 10x", "real + synthetic 1x", "real + synthetic 10x",
    ]  # fmt: skip
    low, high = found["synthetic_10x_ratio_interval"]
    assert rows[2][2].strip() == "120"
    assert rows[4][2].strip() == "12 + 120"
    assert rows[2][4].strip() == f"{found['synthetic_10x_ratio']:.3f} [{low:.3f}, {high:.3f}]"
    assert rows[0][4].strip() == ""
    assert "one generator seed" in text


def test_words_for_arms_and_intervals() -> None:
    arm = {"kind": "mixed", "multiple": 10, "real_images": 1000, "synthetic_images": 10000}
    assert arm_label(arm) == "real + synthetic 10x"
    assert arm_images(arm) == "1,000 + 10,000"
    assert bracket([0.951, 0.979], 100) == " [95.1, 97.9]"
    assert bracket([None, None]) == ""
    assert percent(0.9649) == "96.5 %"
