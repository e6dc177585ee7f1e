"""A small study of worth that is really run: resumed, grown, refused; its summary against sums by hand; planted
sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.cluster.progress import PlainReporter
from engine.errors import ConfigError
from engine.images import catalog as catalogs
from engine.report import worthtable
from engine.spec import RunSpec, spec_hash, validate
from engine.storage import readings
from engine.storage.store import open_store
from engine.study.judge_reading import packed
from engine.study.worth.worth_run import check, summary, worth
from tests.support.synthetic import Quiet

KINDS = {
    "real": {"kind": "real", "multiple": 0},
    "photocopy_2x": {"kind": "photocopy", "multiple": 2},
    "synthetic_2x": {"kind": "synthetic", "multiple": 2},
    "mixed_2x": {"kind": "mixed", "multiple": 2},
}


def _spec(seeds: int = 2, **changes: Any) -> RunSpec:
    data: dict[str, Any] = {
        "name": "tiny",
        "source": {"kind": "digits"},
        "images": {"size": 8},
        "split": {"train": 30, "validation": 120, "test": 60},
        "pretrain": {
            "clip": {"hidden": 16, "heads": 2, "layers": 1, "steps": 2, "batch": 8},
            "pixel": {"blocks": [8, 16], "steps": 8, "batch": 8},
        },
        "generate": {"count": 60, "shard_size": 30, "num_inference_steps": 2},
        "judge": {"multiples": [2], "steps": 10, "seeds": 2, "width": 4},
        "worth": {"seeds": seeds},
        "resources": {"device": "cpu"},
    }
    return validate(data | changes)


def test_a_study_runs_resumes_and_grows(tmp_path: Path, ray_cluster: None) -> None:
    store = open_store(str(tmp_path))
    catalog = catalogs.build(_spec(), store, Quiet())
    said = io.StringIO()
    result = worth(_spec(), catalog, store, PlainReporter(said))
    for seed in (0, 1):  # each seed's training, drawing and judging is seen on its way
        for part in ("pretrain pixel: ", "generate: ", "judges: "):
            assert f"generator {seed}: {part}" in said.getvalue()
    kept = {entry.name: store.read(entry.name) for entry in store.list("results/worth/")}
    assert set(kept) == {"results/worth/seed-0.json", "results/worth/seed-1.json"}
    assert list(result["arms"]) == ["real", "duplicated_2x", "photocopy_2x", "augmented", "synthetic_2x", "mixed_2x"]
    assert result["left_out"]["reconstructed"]  # there is no VAE in pixels
    assert set(result["copies"]) == {"2"}
    assert set(result["fidelity"]) == {"2", "real"}
    store.remove("results/worth/seed-1.json")
    again = worth(_spec(3), catalog, store, PlainReporter())
    assert store.read("results/worth/seed-1.json") == kept["results/worth/seed-1.json"]
    assert again["seeds"] == [0, 1, 2]
    assert len(readings.readings(store)) == 3  # a seed that goes on repeats what it began
    assert json.loads(store.read("results/worth.json")) == again
    assert "copy share" in worthtable.markdown(again)
    with pytest.raises(ConfigError, match="another output"):
        worth(_spec(judge={"multiples": [2], "steps": 11, "seeds": 2, "width": 4}), catalog, store, PlainReporter())


def test_a_study_without_validation_images_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"split\.validation"):
        check(_spec(split={"train": 30, "validation": 0, "test": 60}))


def test_the_section_is_no_part_of_a_runs_identity() -> None:
    assert spec_hash(_spec(2)) == spec_hash(_spec(9))


def _trial(seed: int, rng: np.random.Generator, accuracy: dict[str, float], share: float = 0.0) -> Any:
    """A seed's result, two judges on 400 test images each right with the arm's probability."""
    arms = {}
    for arm, p in accuracy.items():
        right = rng.random((2, 400)) < p
        test = {"accuracy": right.mean(1).tolist(), "right": [packed(row) for row in right]}
        test |= {name: right.mean(1).tolist() for name in ("balanced_accuracy", "macro_f1", "auroc")}
        arms[arm] = {"test": test, "validation": test | {"accuracy": [p, p]}}
    space = {"share": share, "auc": 0.6, "median": 30.0}
    copies = {"sets": {"2": {"pixels": space, "features": space, "verdict": "copies" if share else "no"}}}
    told = {"kid": 0.1, "frechet": 1.0}
    return {
        "seed": seed,
        "images": {"validation": 100, "test": 400},
        "arms": arms,
        "kinds": KINDS,
        "left_out": {},
        "copies": copies,
        "fidelity": {"2": told, "real": told},
    }


def test_the_reference_is_the_best_control_on_validation_and_differences_are_paired_by_generator_seed() -> None:
    rng = np.random.default_rng(0)
    accuracy = {"real": 0.7, "photocopy_2x": 0.75, "synthetic_2x": 0.6, "mixed_2x": 0.85}
    found = [_trial(seed, rng, accuracy, share=0.3) for seed in range(5)]
    result = summary(_spec(5), found)
    assert result["reference"] == "photocopy_2x"
    values = {arm: [float(np.mean(one["arms"][arm]["test"]["accuracy"])) for one in found] for arm in accuracy}
    (mixed,) = [one for one in result["comparisons"] if one["arm"] == "mixed_2x"]
    differences = np.subtract(values["mixed_2x"], values["photocopy_2x"])
    half = stats.t.ppf(0.975, 4) * differences.std(ddof=1) / np.sqrt(5)
    assert mixed["interval"] == pytest.approx([differences.mean() - half, differences.mean() + half])
    assert mixed["finding"] == "higher"
    assert result["arms"]["synthetic_2x"]["ratio"] == pytest.approx(
        np.mean(values["synthetic_2x"]) / np.mean(values["real"])
    )
    assert result["copies"]["2"]["called_copies"] == 5
    assert any("copies" in line for line in worthtable.lines(result))


def test_one_generator_seed_gives_no_verdict() -> None:
    found = [_trial(0, np.random.default_rng(1), {arm: 0.5 + 0.1 * n for n, arm in enumerate(KINDS)})]
    result = summary(_spec(1), found)
    assert all(one["finding"].startswith("no verdict") for one in result["comparisons"])
    assert "one generator seed gives no verdict" in worthtable.lines(result)
