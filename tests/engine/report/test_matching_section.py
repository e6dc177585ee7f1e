"""The report's section on a fine-tune: what it was, curves of its history, its validation samples tile by tile."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from engine.report.html import write
from engine.spec.training import MatchSpec
from engine.storage.store import open_store
from tests.support.hostile import SIZE, JudgedRun

RESULTS = {
    "images": 50,
    "steps": 3,
    "seconds": 1.0,
    "step": [1, 2, 3],
    "loss": [3.0, 2.0, 1.0],
    "phase_step": [1, 2, 3],
    "denoising": [1.0, 0.9, 0.8],
    "mmd": [0.3, 0.2, 0.1],
    "levels": [[0.5, None, 0.7, 0.8, 0.9], [0.4, 0.5, 0.6, 0.7, 0.8], [None, 0.4, 0.5, 0.6, 0.7]],
}


def test_it_shows_what_the_files_hold(judged_run: JudgedRun, tmp_path: Path) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    store = open_store(tmp_path / "run")
    store.replace("results/match.json", json.dumps(RESULTS).encode())
    strip = np.random.default_rng(0).integers(0, 256, (SIZE, 3 * SIZE, 3), np.uint8)
    for step in (1, 3):
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "PNG")
        store.replace(f"match/samples-{step:09d}.png", buffer.getvalue())
    match = MatchSpec(rank=3, targets=("to_q", "to_v"), mmd="kernel_latent", mmd_weight=0.5, steps=3, accumulate=2)
    write(store, judged_run.spec.model_copy(update={"match": match}))
    page = store.read("report.html").decode()
    told = "LoRA of rank 3 on to_q, to_v; MMD term kernel_latent with weight 0.5; 3 steps of 16 images"
    assert page.count(told) == 2  # in its section and among the facts
    assert told in store.read("README.md").decode()
    assert page.count('alt="validation sample') == 6
    first = page.split('alt="validation sample 1 at step 1"')[0].rpartition('src="')[2].partition('"')[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))).convert("RGB"))
    factor = shown.shape[0] // SIZE
    assert (shown[::factor, ::factor] == strip[:, :SIZE]).all()
    assert "80 to 100 %" in page
    assert "kernel_latent, not weighted" in page


def test_a_run_without_one_has_no_such_section(judged_run: JudgedRun) -> None:
    write(judged_run.store, judged_run.spec)
    assert "Fine-tune by distribution matching" not in judged_run.store.read("report.html").decode()
