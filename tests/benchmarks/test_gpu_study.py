"""The GPU study: every cell's recipe is valid, the criterion is what was fixed beforehand, and it runs dry on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_study
from benchmarks.gpu_study import DRY, DRY_SPACES, MATCHING, RECIPES, SPACES, met
from engine.diffusion.tiny import pixelmodels, tiny_models
from engine.spec import load
from engine.spec.recipe import RunSpec


def _load(recipe: str, changes: dict[str, Any]) -> RunSpec:
    return load(RECIPES / f"{recipe}.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_every_generator_is_a_valid_recipe(space: str, dry: bool) -> None:
    spec = _load("gpu_cifar10", SPACES[space] | (DRY | DRY_SPACES[space] if dry else {}))
    assert spec.pretrain.space == space
    tiny_models.check(spec.pretrain, spec.images.size)
    tiny_models.check_generate(spec.pretrain, spec.generate)
    for own in MATCHING.values():
        _load("gpu_cifar10", SPACES[space] | own | {"match.visual_token": "none"})


def test_the_generators_are_of_about_equal_size() -> None:
    pixel, latent = (_load("gpu_cifar10", SPACES[space]).pretrain for space in ("pixel", "latent"))
    sizes = [
        tiny_models.parameters(pixelmodels.build_unet(pixel.pixel, 32, 10)),
        tiny_models.parameters(tiny_models.build_unet(latent.unet, latent.vae, 32, latent.clip.hidden)),
    ]
    assert all(12e6 < size < 18e6 for size in sizes), sizes


def _judged(mixed: float, share: float) -> dict[str, Any]:
    copies = {space: {"share": share} for space in ("pixels", "features")}
    arms = {"real": {"kind": "real", "mean": 0.70}, "augmented": {"kind": "augmented", "mean": 0.72}}
    return {"arms": arms | {"mixed_10x": {"kind": "mixed", "mean": mixed, "copies": copies}}}


@pytest.mark.parametrize(
    ("mixed", "share", "is_met"), [(0.7251, 0.02, True), (0.7249, 0.0, False), (0.8, 0.021, False)]
)
def test_the_criterion(mixed: float, share: float, is_met: bool) -> None:
    assert met(_judged(mixed, share))["met"] is is_met


@pytest.mark.skipif("MIMEO_SLOW" not in os.environ, reason="minutes: make test-slow")
def test_it_runs_dry_and_has_nothing_to_do_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry", "--folder", str(tmp_path / "study"), "--results", str(tmp_path / "results")]
    gpu_study.main(arguments)
    told = json.loads((tmp_path / "results" / "gpu_study_dry.json").read_text())
    assert set(told["matching"]) == set(MATCHING)
    assert {"pixel", "latent", "usps"} <= set(told)
    capfd.readouterr()
    gpu_study.main(arguments)
    assert "== " not in capfd.readouterr().out
