"""The summary of a judged run and its table."""

from __future__ import annotations

import json
import re
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
    spec = digits_spec(split={"train": 12}, judge={"multiples": [1, 10], "seeds": 3}, resources={"price_per_hour": 3})
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
    assert found["cost"]["shards_of_unknown_cost"] == 3
    assert (found["cost"]["price_per_hour"], found["cost"]["price_per_1000_accepted"]) == (3.0, None)

    console = Console(width=80, record=True)
    console.print(table(found))
    text = console.export_text()
    low, high = found["synthetic_10x_ratio_interval"]
    ratio = f"{found['synthetic_10x_ratio']:.3f} [{low:.3f}, {high:.3f}]"
    assert re.findall(r"^ ((?:real|synthetic)(?: \+ synthetic)?(?: \d+x)?)  +([\d,]+(?: \+ [\d,]+)?)  ", text, re.MULTILINE) == [
        ("real", "12"), ("synthetic 1x", "12"), ("synthetic 10x", "120"),
        ("real + synthetic 1x", "12 + 12"), ("real + synthetic 10x", "12 + 120"),
    ]  # fmt: skip
    lines = {line.split("  ")[0].strip(): line.rstrip() for line in text.splitlines()}
    assert lines["synthetic 10x"].endswith(f"]   {ratio}")
    assert lines["real"].endswith("]")
    assert "one generator seed" in text


def test_words_for_arms_and_intervals() -> None:
    arm = {"kind": "mixed", "multiple": 10, "real_images": 1000, "synthetic_images": 10000}
    assert arm_label(arm) == "real + synthetic 10x"
    assert arm_images(arm) == "1,000 + 10,000"
    assert bracket([0.951, 0.979], 100) == " [95.1, 97.9]"
    assert bracket([None, None]) == ""
    assert percent(0.9649) == "96.5 %"
