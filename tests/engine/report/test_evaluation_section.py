"""The report's section and the terminal's tables of an evaluation, from a result as the engine assembles it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from engine.evaluation.classifier_evaluation import RESULT, assemble
from engine.evaluation.classifiers import Named
from engine.report import evaluation_page
from engine.report.html import write
from engine.spec.evaluation import EvaluateSpec
from engine.storage.store import open_store
from tests.support.hostile import CLASSES, JudgedRun

LISTED = [Named(f"{arm}-{seed}", arm, seed, False) for arm in ("real", "synthetic_1x") for seed in (0, 1)]
RIGHT = {"real-0": 16, "real-1": 18, "synthetic_1x-0": 12, "synthetic_1x-1": 15}
PAIR = {
    "features": {"value": 0.75, "error": 0.05},
    "pixels": {"value": 1.0, "error": 0.0},
    "classes": [{"cka": 0.5, "angle": 30.0, "shift": None}] * CLASSES,
}


def count(factor: int = 1) -> dict:
    return {"images": [4] * CLASSES, "right": {name: [n // factor, *[0] * (CLASSES - 1)] for name, n in RIGHT.items()}}


@pytest.fixture
def result(judged_run: JudgedRun) -> dict:
    asked = EvaluateSpec.model_validate(
        {
            "sets": {"other": {"source": {"kind": "mnist"}}},
            "corruptions": {"kinds": ["jpeg"], "severities": [2]},
            "gap": {},
        }
    )
    spec = judged_run.spec.model_copy(update={"evaluate": asked})
    own = {**count(), "classes": list(range(CLASSES)), "restricted": False, "left_out": {}, "bad": 0, "trained_on": 0}
    other = {**own, "classes": [0, 1], "restricted": True, "left_out": {"<b>x": 3}, "bad": 1, "trained_on": 2}
    gap = {"images": 20, "pairs": dict.fromkeys(("synthetic", "real", "held_out"), PAIR)}
    found = {
        ("set", "test"): own,
        ("set", "other"): other,
        ("corruption", "jpeg"): {"2": count(2)},
        ("gap", "real-0"): gap,
        ("gap", "real-1"): gap,
    }
    return json.loads(json.dumps(assemble(spec, LISTED, judged_run.catalog.class_names, found)))


def test_the_numbers_of_the_pieces(result: dict) -> None:
    own = result["sets"]["test"]
    assert own["arms"]["real"]["values"] == [16 / 20, 18 / 20]
    assert own["comparisons"][0]["difference"] == pytest.approx((12 + 15 - 16 - 18) / 40)
    assert result["corruptions"]["mean"]["arms"]["synthetic_1x"]["values"] == [6 / 20, 7 / 20]
    pair = result["gap"]["pairs"]["real"]
    low, high = pair["features"]["interval"]
    assert low < 0.75 < high
    assert pair["pixels"]["interval"] == [None, None]
    assert pair["mean"] == {"cka": 0.5, "angle": 30.0, "shift": None}


def test_the_page_shows_them(judged_run: JudgedRun, tmp_path: Path, result: dict) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    store = open_store(tmp_path / "run")
    write(store, judged_run.spec)
    assert 'id="evaluation"' not in store.read("report.html").decode()
    store.replace(RESULT, json.dumps(result).encode())
    write(store, judged_run.spec)
    page = store.read("report.html").decode()
    section = page.partition('id="evaluation"')[2].partition("</section>")[0]
    assert section.count("<svg") == 2
    assert "not the published" in section
    for text in ("own test split", "85.0", "-17.5", "other: 3 images of 1 unmapped classes left out", "0.750", "1.000"):
        assert text in section, text
    assert "chose among the set&#39;s 2 classes only" in section
    assert "<script" not in section


def test_the_terminal_shows_them(result: dict) -> None:
    console = Console(record=True, width=140)
    for table in evaluation_page.tables(result):
        console.print(table)
    text = console.export_text()
    for expected in ("85.0", "-17.5", "synthetic 1x", "jpeg", "training vs held-out real", "0.750", "-C style"):
        assert expected in text, expected
