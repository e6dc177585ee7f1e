"""Each other family of generators is fine-tuned for two steps; its LoRA is taken whole and changes what is drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.cluster.progress import PlainReporter
from engine.conditions import featuremodel, row_pool
from engine.conditions.features import FeatureExtractor
from engine.diffusion import checkpoint as checkpoints
from engine.diffusion import lora
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.generation import generation_job
from engine.images.image_reader import Reader
from engine.spec.recipe import ModelSpec
from engine.storage.store import open_store
from engine.training.matching import data
from engine.training.matching.matching_precheck import FOLDER, WEIGHTS
from engine.training.matching.matching_run import check_model
from engine.training.matching.matching_worker import Matching
from tests.support.families import SIZE, write_family
from tests.support.matching import Parts, match_spec
from tests.support.outputs import Output

GENERATE: dict[str, dict[str, Any]] = {
    "xl": {"scheduler": "euler"},
    "sd3_t5": {"scheduler": "flow_euler"},
    "dit": {"scheduler": "ddim", "visual_token": "none"},
    "pixel": {"scheduler": "heun"},
}


def _parts(ready: Output, folder: Path, kind: str, **match: Any) -> Parts:
    """The prepared digits with another generator, and features by its own CLIP."""
    data = ready.spec.model_dump(mode="json")
    data["model"]["checkpoint"] = str(write_family(folder, kind))
    data["generate"] |= GENERATE[kind]
    base = type(ready.spec).model_validate(data)
    token = GENERATE[kind].get("visual_token", "own")
    spec = match_spec(base, visual_token=token, **({"steps": 2, "lr": 0.05, "mmd": "kernel_latent"} | match))
    checkpoint = checkpoints.inspect(spec.model, SIZE)
    extractor = FeatureExtractor(featuremodel.resolve(spec.conditions.features, folder), "cpu")
    features = extractor.images(Reader(spec).pixels(ready.catalog.split("train"))).astype(np.float32)
    conditions = dataclasses.replace(ready.conditions, features=features)
    return Parts(dataclasses.replace(ready, spec=spec, checkpoint=checkpoint, conditions=conditions), spec)


def _stored(parts: Parts, folder: Path) -> Matching:
    """A fine-tune from inputs that were computed in one go, written and read again."""
    store, output = open_store(str(folder / "stored")), parts.output
    rows = output.catalog.split("train")
    data.precompute(
        parts.spec,
        output.checkpoint,
        rows,
        output.conditions,
        store,
        {"made": "here"},
        PlainReporter(),
        run=row_pool.here,
    )
    where = None if parts.cache().tokens is None else parts.cache().place
    return parts.matching(folder, inputs=data.load(store, output.conditions, where))


@pytest.mark.parametrize("kind", GENERATE)
def test_a_family_is_fine_tuned_and_drawn_with(ready: Output, tmp_path: Path, kind: str) -> None:
    parts = _parts(ready, tmp_path / "model", kind)
    checkpoint = parts.output.checkpoint
    check_model(parts.spec, checkpoint)
    stored, live = _stored(parts, tmp_path), parts.matching(tmp_path)
    losses = [float(one.stage.loss(one.stage.module, 1).detach()) for one in (stored, live)]
    assert losses[0] == losses[1]
    assert parts.matching(tmp_path / "out").run()["done"]
    results = json.loads((tmp_path / "out/results/match.json").read_text())
    assert np.isfinite(results["loss"]).all()
    path = tmp_path / "out" / FOLDER / WEIGHTS
    found = lora.check(path, checkpoint)
    assert found.rank == 2
    assert generation_job.check(parts.spec, checkpoint, path) == found.sha256
    token = None if kind == "dit" else parts.output.conditions.features[0]
    drawn = []
    for adapted in (False, True):
        pipeline = checkpoints.load(checkpoint, "cpu", "float32")
        if adapted:
            lora.attach(pipeline, path, 1.0)
        [image] = Sampler(pipeline, parts.spec.generate).draw([Request("photo of digit 1", 5, token, label=1)])
        assert image.pixels is not None
        drawn.append(image.pixels.astype(int))
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("kind", ["dit", "pixel"])
def test_all_weights_are_fine_tuned_into_a_directory_of_the_family(ready: Output, tmp_path: Path, kind: str) -> None:
    """Whole and of the same parts, changed where the fine-tune changed it and nowhere else."""
    parts = _parts(ready, tmp_path / "model", kind, adapter="full", mmd="residual", lr=1e-3)
    assert parts.matching(tmp_path / "out").run()["done"]
    before = parts.output.checkpoint
    after = checkpoints.inspect(ModelSpec(checkpoint=str(tmp_path / "out" / FOLDER)), SIZE)
    assert (after.family, after.files.keys(), after.places) == (before.family, before.files.keys(), before.places)
    weights = {
        name for name in after.files if name.endswith(".safetensors") and after.files[name] != before.files[name]
    }
    expected = {"dit": ("transformer",), "pixel": ("unet", "image_projection")}[kind]
    assert weights == {f"{name}/diffusion_pytorch_model.safetensors" for name in expected}
    token = parts.output.conditions.features[0] if kind == "pixel" else None
    [image] = Sampler(checkpoints.load(after, "cpu", "float32"), parts.spec.generate).draw(
        [Request("a", 5, token, label=1)]
    )
    assert image.pixels is not None


def test_workers_of_a_family_draw_validation_samples(ready: Output, tmp_path: Path) -> None:
    found = _parts(ready, tmp_path / "model", "sd3_t5", samples=3).matching(tmp_path)
    found.watch.samples(0)
    assert (tmp_path / "match/samples-000000000.png").stat().st_size > 100
    assert torch.is_grad_enabled()


def test_a_class_conditional_family_has_no_image_token(ready: Output, tmp_path: Path) -> None:
    parts = _parts(ready, tmp_path / "model", "dit")
    spec = match_spec(parts.spec, visual_token="own")
    with pytest.raises(ConfigError, match=r"match\.visual_token.*told classes only"):
        generation_job.check(spec, parts.output.checkpoint)
