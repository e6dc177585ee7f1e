"""One shard from inspection to record with each other family of generators."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.conditions import featuremodel
from engine.conditions.features import FeatureExtractor
from engine.conditions.table import Conditions
from engine.diffusion.checkpoint import inspect, load
from engine.diffusion.sampler import Sampler
from engine.errors import ConfigError
from engine.generation import generation_job
from engine.generation.generation_worker import ShardWorker
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.shards.names import PlanFacts
from engine.spec import RunSpec, spec_hash
from engine.storage.store import open_store
from tests.support.families import SIZE, write_family
from tests.support.outputs import digits_spec

CLASSES = ("zero", "one", "two")
ASKED: dict[str, dict[str, Any]] = {
    "xl": {"scheduler": "euler", "visual_token": "own"},
    "sd3_t5": {"scheduler": "flow_euler", "visual_token": "class_mean"},
    "dit": {"scheduler": "ddim", "visual_token": "none", "strength": 0.5, "pairing": "own"},
}


def conditions_of(spec: RunSpec, folder: Path, pixels: np.ndarray) -> Conditions:
    """Twelve images of three classes, with features by the checkpoint's own CLIP."""
    labels = np.arange(len(pixels), dtype=np.int32) % len(CLASSES)
    extractor = FeatureExtractor(featuremodel.resolve(spec.conditions.features, folder), "cpu")
    features = extractor.images(pixels).astype(np.float32)
    return Conditions(
        keys=tuple(f"image{i:02d}" for i in range(len(pixels))),
        labels=labels,
        captions=("",) * len(pixels),
        prompts=tuple(f"photo of digit {CLASSES[label]}" for label in labels),
        features=features,
        class_means=np.stack([features[labels == k].mean(0) for k in range(len(CLASSES))]),
        class_names=CLASSES,
    )


@pytest.mark.parametrize("kind", ASKED)
def test_a_shard_is_made(tmp_path: Path, kind: str) -> None:
    folder = write_family(tmp_path / "model", kind)
    generate = {"count": 10, "shard_size": 10, "num_inference_steps": 2, "gate": {"min_std": 0.0}, **ASKED[kind]}
    spec = digits_spec(folder, generate, resources={"device": "cpu", "batch_size": 4})
    checkpoint = inspect(spec.model, SIZE)
    assert generation_job.check(spec, checkpoint) is None
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), dtype=np.uint8)
    conditions = conditions_of(spec, folder, pixels)
    facts = PlanFacts(spec.name, 10, 10, spec_hash(spec))
    worker = ShardWorker(
        spec,
        open_store(str(tmp_path / "out")),
        Plan(spec, conditions.labels, conditions.class_names),
        Requests(spec, conditions, lambda rows: pixels[rows]),
        Sampler(load(checkpoint, "cpu", "float32"), spec.generate),
        batch_size=4,
        plan_facts=facts,
        provenance={"checkpoint": checkpoint.digest},
    )
    record = worker.make(0)
    assert (record.planned, len(record.quarantined)) == (10, 0)
    with tarfile.open(tmp_path / "out/data/digits-000000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    images = [np.asarray(Image.open(io.BytesIO(data))) for name, data in found.items() if name.endswith(".png")]
    facts_of = [json.loads(data) for name, data in found.items() if name.endswith(".json")]
    assert [image.shape for image in images] == [(SIZE, SIZE, 3)] * 10
    assert len({image.tobytes() for image in images}) == 10
    assert {fact["checkpoint"] for fact in facts_of} == {checkpoint.digest}


@pytest.mark.parametrize(
    ("kind", "generate", "message"),
    [
        ("sd3", {"scheduler": "dpmsolver++"}, "set generate.scheduler to flow_euler"),
        ("dit", {"visual_token": "own"}, "set generate.visual_token to none"),
        ("xl", {"scheduler": "flow_euler"}, "set generate.scheduler to dpmsolver"),
    ],
)
def test_what_a_family_cannot_do_is_refused_before_a_model_is_loaded(
    tmp_path: Path, kind: str, generate: dict[str, Any], message: str
) -> None:
    folder = write_family(tmp_path / "model", kind)
    spec = digits_spec(folder, generate)
    with pytest.raises(ConfigError, match=message):
        generation_job.check(spec, inspect(spec.model, SIZE))
