"""The quickstart as a user runs it, made small: a generator in pixels, copies and controls beside the ratio, and
studies on its output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine.shards.verification import verify
from engine.storage.store import open_store
from tests.support.commands import mimeo

SMALL = {
    "split": "{train: 60, validation: 60, test: 60}",
    "pretrain.clip": "{hidden: 16, heads: 2, layers: 1, steps: 4, batch: 16}",
    "pretrain.pixel": "{blocks: [8, 16], steps: 8, batch: 16}",
    "generate": "{count: 120, shard_size: 40, num_inference_steps: 2, gate: {min_std: 0}}",
    "judge.steps": "10",
    "judge.seeds": "2",
    "resources": "{device: cpu, batch_size: 40}",
}


@pytest.mark.timeout(1800)
def test_the_quickstart_says_what_its_images_are_worth_and_whether_they_are_copies(tmp_path: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    first = mimeo("quickstart", *settings, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs/quickstart"
    assert json.loads((run / "model/model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
    assert not (run / "model/vae").exists()
    summary = json.loads((run / "results/summary.json").read_text())
    judged = json.loads((run / "results/judge.json").read_text())
    assert {"real", "synthetic_1x", "synthetic_2x", "mixed_1x", "mixed_2x"} <= judged[
        "arms"
    ].keys()  # as generate.count has it
    assert {"duplicated_2x", "photocopy_2x", "augmented"} <= judged["arms"].keys()
    assert judged["left_out"] == {"reconstructed": "the generator has no VAE"}
    assert 0 <= summary["synthetic_2x_copy_share"] <= 1
    page = (run / "report.html").read_text()
    assert "copy share" in page.lower()
    assert {"copies %", "best control"} <= set(re.findall(r"copies %|best control", first.stdout))

    again = mimeo("quickstart", *settings, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    for name, asked in (
        ("train_digits", "train={arms: [real, augmentation], multiples: [1], seeds: 1, steps: 4, batch: 16}"),
        ("evaluate_digits", "evaluate={gap: {images: 40, folds: 2, steps: 4}}"),
    ):
        done = mimeo(name.split("_")[0], name, *settings, "--set", asked, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert verify(open_store(run)).faults == []
