"""Outputs on an object store: what was stopped or killed is taken up from the store alone and makes what a disk would
hold."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
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
from engine.spec.recipe import ResourcesSpec
from engine.training.matching.matching_run import match
from engine.run.stages import generator
from pipelines.verbs import verb

with session(ResourcesSpec(device="cpu"), num_cpus=3):
    run = verb("features", "recipe.yaml", None, sys.argv[1])
    model = checkpoint.inspect(generator(run), 8)
    stopped = match(run.spec, run.store, model, catalog.load(run.store), run.reporter, time_limit=0.0)
    assert not stopped.done, stopped
    assert list(run.store.list("checkpoints/match-")), "no checkpoint"
    for output in sys.argv[1:]:
        assert verb("generate", "recipe.yaml", None, output) is not None
"""


SEARCH = (
    RECIPE
    + """
judge: {steps: 20, batch: 16}
search: {ratios: [0, 1, 2], generator_seeds: 2, judge_seeds: 1}
"""
)


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the interpreter in `cwd`, whose folder `cache` is the node's cache."""
    more = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1", "MIMEO_CACHE": str(cwd / "cache")}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **more},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def python(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Run it to its end: its exit code and what it said."""
    process = start(*arguments, cwd=cwd)
    said = process.communicate(timeout=1500)[0]
    return process.returncode, said


@pytest.mark.timeout(1800)
def test_a_store_holds_the_bytes_of_a_disk(tmp_path: Path, s3_url: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, said = python("-c", RUNS, s3_url, "out", cwd=tmp_path)
    assert code == 0, said
    copies = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert sorted(name.rpartition("-")[0] for name in copies) == ["model", "pytorch_lora_weights.safetensors"]
    code, said = python("-m", "pipelines.cli", "verify", s3_url, cwd=tmp_path)
    assert (code, said.split(":")[0]) == (0, "clean"), said

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


@pytest.mark.timeout(1800)
def test_a_search_whose_cluster_died_goes_on_from_the_store(tmp_path: Path, s3_url: str) -> None:
    """Driver and Ray are killed once a trial has published; another Ray makes the rest, and the result of an
    undisturbed search."""
    (tmp_path / "recipe.yaml").write_text(SEARCH)
    url = f"{s3_url}-search"
    store, disk = open_store(url), open_store(tmp_path / "out")
    words = ["-m", "pipelines.cli", "search", "recipe.yaml", "--set", "split.validation=50", "--output"]
    process = start(*words, url, cwd=tmp_path)
    deadline = time.monotonic() + 600
    while not (published := [entry.name for entry in store.list("results/search/") if entry.size]):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    kept = {name: store.read(name) for name in published}
    for place in (url, "out"):
        code, said = python(*words, place, cwd=tmp_path)
        assert code == 0, said
    assert {name: store.read(name) for name in published} == kept
    assert json.loads(store.read("results/search.json")) == json.loads(disk.read("results/search.json"))
