"""A run whose output is an object store: stopped and taken up again, it makes the bytes of a run on a disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.storage.store import open_store

pytestmark = pytest.mark.usefixtures("real_clusters")

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: stored
source: {kind: digits}
images: {size: 8}
split: {train: 40, validation: 0, test: 50}
pretrain:
  text_length: 8
  clip: {hidden: 16, heads: 2, layers: 1, steps: 6, batch: 12}
  vae: {blocks: [8, 8], steps: 6, batch: 8}
  unet: {blocks: [16, 16], head_dim: 8, steps: 6, batch: 8}
match: {rank: 2, steps: 6, batch: 8, lr: 0.01, checkpoint_every: 4, samples: 0, precompute: false}
conditions: {prompt: "a {class}"}
generate: {count: 24, shard_size: 8, num_inference_steps: 2, guidance_scale: 2.0, visual_token: own, gate: {min_std: 0}}
resources: {device: cpu, actors: 2, cpus_per_actor: 0.5, batch_size: 8}
"""
RUNS = """
import sys
from engine.cluster.session import session
from engine.diffusion import checkpoint
from engine.images import catalog
from engine.spec.models import ResourcesSpec
from engine.training.matching.run import match
from pipelines.stages import generator, verb

with session(ResourcesSpec(device="cpu"), num_cpus=3):
    run = verb("features", "recipe.yaml", None, sys.argv[1])
    model = checkpoint.inspect(generator(run.spec, run.store), 8)
    stopped = match(run.spec, run.store, model, catalog.load(run.store), run.reporter, time_limit=0.0)
    assert not stopped.done, stopped
    assert list(run.store.list("checkpoints/match-")), "no checkpoint"
    for output in sys.argv[1:]:
        assert verb("generate", "recipe.yaml", None, output) is not None
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in `cwd`, whose folder `cache` is the node's cache."""
    more = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1", "MIMEO_CACHE": str(cwd / "cache")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1500, cwd=cwd, env={**os.environ, **more}, check=False
    )


@pytest.mark.timeout(1800)
def test_a_store_holds_the_bytes_of_a_disk(tmp_path: Path, s3_url: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    made = python("-c", RUNS, s3_url, "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    copies = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert sorted(name.rpartition("-")[0] for name in copies) == ["model", "pytorch_lora_weights.safetensors"]
    verified = python("-m", "pipelines.cli", "verify", s3_url, cwd=tmp_path)
    assert (verified.returncode, verified.stdout.split(":")[0]) == (0, "clean"), verified.stderr

    store, disk = open_store(s3_url), open_store(tmp_path / "out")
    assert not list(store.list("checkpoints/"))
    for name in ("plan.json", "catalog/catalog.parquet", "match/model/pytorch_lora_weights.safetensors"):
        assert store.read(name) == disk.read(name), name
    manifests = [pq.read_table(io.BytesIO(place.read("manifest.parquet"))) for place in (store, disk)]
    assert manifests[0].equals(manifests[1])
    shards = [entry.name for entry in disk.list("data/") if entry.name.endswith(".tar")]
    assert len(shards) == 3
    for name in shards:
        assert store.read(name) == disk.read(name), name
    assert json.loads(store.read("plan.json"))["lora"]
