"""The main job as a user runs it: a folder of mixed images with bad files in, verified shards and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.shards.verification import verify
from engine.storage.store import open_store
from tests.support.commands import mimeo
from tests.support.images import mixed_folder

RECIPE = """
name: mixed
source: {kind: folder, path: photos}
images: {size: 16}
split: {train: rest, validation: 0, test: 0.3}
pretrain:
  augment: flip
  clip: {patch: 4, steps: 4, batch: 16, layers: 1}
  vae: {blocks: [16, 16], steps: 4, batch: 8}
  unet: {blocks: [16, 32], steps: 4, batch: 8}
match: {steps: 3, batch: 4, lr: 0.01, targets: attention+conv, mmd: kernel_feature, augment: flip, samples: 3}
generate: {count: COUNT, shard_size: 20, num_inference_steps: 2, format: jpg, visual_token: class, gate: {min_std: 0}}
judge: {arms: [real, synthetic], multiples: [1], steps: 10, batch: 16, seeds: 2}
"""


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.timeout(1800)
def test_mixed_images_in_verified_shards_out(tmp_path: Path) -> None:
    mixed = mixed_folder(tmp_path / "photos")
    train = len(mixed.good) - round(0.3 * len(mixed.good))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("COUNT", str(train + 5)))
    first = mimeo("run", "recipe.yaml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "mixed"

    quarantined = pq.read_table(run / "catalog" / "quarantine.parquet").to_pylist()
    assert sorted(row["reason"] for row in quarantined) == sorted(mixed.bad.values())
    manifest = pq.read_table(run / "manifest.parquet")
    assert sum(manifest["count"].to_pylist()) == train + 5
    summary = json.loads((run / "results" / "summary.json").read_text())
    assert 0 <= summary["synthetic_1x_accuracy"] <= 1
    assert 0 <= summary["real_accuracy"] <= 1
    for name in ("report.html", "README.md", "results/gallery.png"):
        assert (run / name).stat().st_size > 1000
    tuned = json.loads((run / "match/mimeo.json").read_text())
    assert json.loads((run / "plan.json").read_text())["lora"] == tuned["files"]["pytorch_lora_weights.safetensors"]
    page = (run / "report.html").read_text()
    assert "Fine-tune by distribution matching" in page
    assert page.count('alt="validation sample') == 3

    tree = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = mimeo("run", "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tree} == tree

    planned = mimeo("plan", "recipe.yaml", "--set", "generate.count=5000", cwd=tmp_path).stdout
    assert "from the run's catalog" in planned
    assert "measured on this run" in planned
    other = mimeo("plan", "recipe.yaml", "--set", "images.size=32", cwd=tmp_path).stdout
    assert "a scan of the source" in other
    assert "a rough guess" in other

    clean = mimeo("verify", str(run), cwd=tmp_path)
    assert clean.returncode == 0
    assert "not checked" not in clean.stdout  # every file of the output has a seal
    for path in run.glob("*/*.*"):
        flip(path, 0)
        assert verify(open_store(run)).faults, path
        flip(path, 0)
    assert mimeo("report", str(run), cwd=tmp_path).returncode == 0
    assert verify(open_store(run)).faults == []
    assert f"{train + 5} of {train + 5}" in mimeo("status", str(run), cwd=tmp_path).stdout
    shard = run / "data" / "mixed-000000.tar"
    flip(shard, 700)
    broken = mimeo("verify", str(run), cwd=tmp_path)
    assert broken.returncode == DataError.exit_code
    assert "mixed-000000.tar" in broken.stderr
    assert "Traceback" not in broken.stderr
