"""Whole judged outputs with planted sets: photocopies are called copies, real images posing as synthetic are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from engine.evaluation import audit
from engine.evaluation.audit import RESULT, reconstructed
from engine.evaluation.judge_result import judge
from engine.evaluation.plainly import sentences
from engine.evaluation.run_summary import summary
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.storage.store import Store, open_store
from engine.training.judge_data import real_images
from tests.support.checkpoints import write_checkpoint
from tests.support.synthetic import Quiet, QuietTask, claimed, digits_spec, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPLIT = {"train": 60, "validation": 300, "test": 300}


def planted(folder: Path, copied: bool, **sections: Any) -> tuple[RunSpec, Store, Catalog]:
    """An output whose synthetic images are noisy training images, or real images of no split."""
    judge = {"multiples": [1, 2], "seeds": 2, "steps": 20, **sections.pop("judge", {})}
    spec = digits_spec(split=SPLIT, judge=judge, **sections)
    store, catalog = claimed(folder, spec)
    rows = catalog.split("train" if copied else "unused")
    real = real_images(spec, rows.slice(0, 120), QuietTask(0), same_codec=True)
    order = np.arange(120) % len(real.labels)
    noise = np.random.default_rng(0).normal(0, 17.5 if copied else 0, (120, 8, 8, 1))
    pixels = np.clip(real.pixels[order] + noise, 0, 255).round().astype(np.uint8)
    write_shards(store, spec, pixels, real.labels[order], catalog.class_names)
    return spec, store, catalog


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def copied(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, model: Path
) -> tuple[RunSpec, Store, Catalog, dict]:
    spec, store, catalog = planted(
        tmp_path_factory.mktemp("copied") / "run", copied=True, model={"checkpoint": str(model)}
    )
    return spec, store, catalog, judge(spec, catalog, store, Quiet())


def test_photocopies_are_called_copies(copied: tuple[RunSpec, Store, Catalog, dict]) -> None:
    spec, store, _, result = copied
    for key in ("synthetic_1x", "synthetic_2x", "mixed_2x"):
        own = result["arms"][key]["copies"]
        assert own["verdict"] == "copies"
        assert own["pixels"]["share"] > 0.3
        assert own["pixels"]["auc"] > 0.95
    assert result["copies"]["held_out"] == {"split": "validation", "images": 300}
    photocopy = result["copies"]["photocopy"]
    assert photocopy["noise"] == pytest.approx(17.5, rel=0.15)  # what was planted is found again
    assert photocopy["median"] == pytest.approx(photocopy["target"], rel=0.01)
    assert sentences(summary(spec, store))[0].startswith("The synthetic set holds copies of its training images")


def test_controls_are_judged_with_the_same_seeds(copied: tuple[RunSpec, Store, Catalog, dict]) -> None:
    _, store, _, result = copied
    keys = ["duplicated_2x", "photocopy_2x", "reconstructed", "augmented"]
    assert list(result["arms"])[-4:] == keys
    for key in keys:
        assert len(result["arms"][key]["values"]) == 2
        assert store.exists(f"results/judge/{key}-1.json")
    assert result["arms"]["photocopy_2x"]["real_images"] == 120
    assert result["left_out"] == {}
    assert result["copies"]["augmentation"]["chosen_on"] == "validation"
    best = result["arms"]["synthetic_2x"]["control"]["best"]
    assert result["arms"][best]["mean"] == max(result["arms"][key]["mean"] for key in keys)
    assert set(result["arms"]["real"]["measures"]) == {"accuracy", "balanced_accuracy", "macro_f1", "auroc"}


def test_an_interrupted_judge_keeps_its_audit_and_repeats_its_controls(
    copied: tuple[RunSpec, Store, Catalog, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store, catalog, result = copied
    shutil.copytree(store.url, tmp_path / "run")
    again = open_store(tmp_path / "run")
    for name in ("results/judge.json", "results/judge/photocopy_2x-0.json", "results/judge/reconstructed-1.json"):
        again.remove(name)
    monkeypatch.setattr(audit, "audited", None)  # nothing is measured a second time
    found = judge(spec, catalog, again, Quiet())
    assert found["copies"] == result["copies"] == json.loads(store.read(RESULT))
    for key, arm in result["arms"].items():
        assert found["arms"][key]["values"] == arm["values"], key


def test_real_images_posing_as_synthetic_have_the_null_share(
    tmp_path_factory: pytest.TempPathFactory, copied: tuple[RunSpec, Store, Catalog, dict]
) -> None:
    spec, store, catalog = planted(
        tmp_path_factory.mktemp("posing") / "run",
        copied=False,
        judge={"controls": ["photocopy"], "metric": "auroc", "multiples": None},
    )
    result = judge(spec, catalog, store, Quiet())
    own = result["arms"]["synthetic_2x"]["copies"]
    assert own["verdict"] == "not told from real images"
    assert own["pixels"]["share"] <= own["pixels"]["null_interval"][1]
    assert own["pixels"]["auc_interval"][0] < 0.5 < own["pixels"]["auc_interval"][1]
    assert result["arms"]["real"]["values"] == result["arms"]["real"]["measures"]["auroc"]["values"]
    assert result["arms"]["real"]["mean"] > max(result["arms"]["real"]["accuracies"])
    assert [key for key in result["arms"] if "synthetic" in key] == ["synthetic_1x", "synthetic_2x"]
    told = sentences(summary(spec, store))
    assert told[0].startswith("Copies could not be told from what real images show")
    assert "AUROC" in told[1]


def test_reconstructed_images_are_those_of_the_autoencoder(
    copied: tuple[RunSpec, Store, Catalog, dict], model: Path
) -> None:
    spec, _, catalog, _ = copied
    rows = catalog.split("train").slice(0, 5)
    found = reconstructed(spec, rows, str(model))
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    images = torch.tensor(real_images(spec, rows, QuietTask(0), same_codec=True).pixels).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = vae.decode(vae.encode(images / 127.5 - 1).latent_dist.mode()).sample
    expected = ((expected + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
