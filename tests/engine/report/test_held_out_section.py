"""The report on held-out images: the words follow from the planted curves, and the page has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import DataError
from engine.report import heldcurves
from engine.report.html import write
from engine.storage.store import open_store
from tests.support.hostile import JudgedRun

STEPS = [100 * n for n in range(1, 9)]


def curve(held: Any, train: Any = None) -> Any:
    held = [float(value) for value in held]
    train = [0.9 * value for value in held] if train is None else [float(value) for value in train]
    best = int(np.argmin(held))
    return {
        "step": STEPS[: len(held)],
        "train": train,
        "held": held,
        "lengths": [[0.05, held[best]], [0.1, held[best] * 1.01]],
        "chosen_step": STEPS[best],
        "chosen_length": 0.05,
    }


@pytest.mark.parametrize("best", range(7))
def test_a_curve_that_rises_again_is_called_over_fitting_from_its_least(best: int) -> None:
    x = np.arange(8)
    found = heldcurves.denoiser(curve(0.2 + 0.01 * (x - best) ** 2, 0.3 - 0.02 * x))
    assert found.startswith(f"Over-fits from step {STEPS[best]:,} on: its held-out error rises from 0.2 to ")
    assert "while its training error falls" in found
    assert f"The weights of step {STEPS[best]:,} are used, averaged over a relative length of 0.05." in found


def test_an_error_that_rises_for_both_is_not_said_to_fall_for_one() -> None:
    found = heldcurves.denoiser(curve([0.3, 0.2, 0.3], [0.2, 0.1, 0.2]))
    assert found.startswith("Over-fits from step 200 on")
    assert "training error falls" not in found


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([0.5, 0.4, 0.3], "Its held-out error is still falling at the end (0.4 to 0.3): train longer."),
        ([0.5, 0.3, 0.2995], "Its held-out error is level at the end (0.299)"),
        ([0.5, 0.3, 0.3005], "Its held-out error is level at the end (0.3"),
        ([0.5], "Its held-out error is level at the end (0.5)"),
    ],
)
def test_a_curve_that_does_not_rise_says_whether_more_would_help(held: list[float], words: str) -> None:
    assert heldcurves.denoiser(curve(held)).startswith(words)


def test_an_autoencoder_that_knows_its_images_by_heart_is_told() -> None:
    assert heldcurves.autoencoder({"train": 3.4, "held": 16.0}).endswith("rather than images of their kind.")
    honest = heldcurves.autoencoder({"train": 3.4, "held": 3.6})
    assert (
        honest == "It rebuilds training images to within 3.4 of 255 and held-out ones to within 3.6 (root mean square)."
    )


def results(store: Any, held_out: Any) -> None:
    own = {"steps": 2, "seconds": 1.0, "step": [1, 2], "loss": [2.0, 1.0]}
    found = {"images": 50, "stages": {"vae": own, "unet": own}, "held_out": held_out}
    store.replace("results/pretrain.json", json.dumps(found).encode())


def test_the_page_has_curves_and_words(judged_run: JudgedRun, tmp_path: Path) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    store = open_store(tmp_path / "run")
    results(store, {"vae": {"train": 3.4, "held": 16.0}, "unet": curve([0.5, 0.2, 0.4], [0.5, 0.2, 0.1])})
    write(store, judged_run.spec)
    page = store.read("report.html").decode()
    assert page.count("Held-out training images, which no training saw") == 1
    assert (
        "Over-fits from step 200 on: its held-out error rises from 0.2 to 0.4, while its training error falls" in page
    )
    assert "to within 3.4 of 255 and held-out ones to within 16.0" in page
    assert "denoising loss" in page
    results(store, {})
    write(store, judged_run.spec)
    assert "which no training saw" not in store.read("report.html").decode()


def test_results_that_were_edited_are_refused(judged_run: JudgedRun, tmp_path: Path) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    store = open_store(tmp_path / "run")
    results(store, {"unet": curve([0.5, 0.2]) | {"held": "many"}})
    with pytest.raises(DataError, match="is not what its writer wrote"):
        heldcurves.context(store)
