"""Small classifiers on real digits without Ray: images in this process, as one worker or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

from engine.spec.classifier import TrainSpec
from engine.storage.store import open_store
from engine.training.classifier.classifier_arms import REAL, SYNTHETIC, Arm
from engine.training.classifier.classifier_worker import TEST, VALIDATION, Job, Task, Training
from engine.training.classifier.ingest import Images, held
from engine.training.setup import Place

NAMES = tuple("0123456789")
CPU = torch.device("cpu")
TRAIN: dict[str, Any] = {"steps": 12, "batch": 8, "width": 8, "checkpoint_every": 4, "lr": 3e-3}
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "arguments": {"patch_size": 2, "depth": 1, "embed_dim": 16, "num_heads": 2},
}


def images() -> dict[str, Images]:
    """60 digits for training, 100 noisy ones as synthetic, 50 and 100 to validate and test."""
    data = load_digits()
    grey = (data.images * 255 / 16).round().astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    noise = np.random.default_rng(0).integers(-20, 20, (100, 8, 8, 3))
    noisy = np.clip(pixels[300:400].astype(int) + noise, 0, 255).astype(np.uint8)
    labels = data.target.astype(np.int64)
    return {
        REAL: held(pixels[:60], labels[:60]),
        SYNTHETIC: held(noisy, labels[300:400]),
        VALIDATION: held(pixels[400:450], labels[400:450]),
        TEST: held(pixels[500:600], labels[500:600]),
    }


def training(
    folder: Path,
    arm: Arm | None = None,
    *,
    place: Place | None = None,
    deadline: float | None = None,
    without: tuple[str, ...] = (),
    **settings: Any,
) -> Training:
    """One classifier as one of its workers runs it; `without`: sets that are empty; `settings` change `TRAIN`."""
    spec = TrainSpec.model_validate(TRAIN | settings)
    arm = arm or Arm("augmentation", multiple=1)
    task = Task(arm, 0, f"{arm.key}-0", {"settings": spec.model_dump(mode="json")})
    sets = {name: found for name, found in images().items() if name not in without}
    job = Job(spec, open_store(str(folder)), (task,), NAMES, 8, 60, deadline)
    return Training(job, task, sets, place or Place(0, 1, CPU))


def worker(rank: int, world: int, folder: str, settings: dict[str, Any]) -> None:
    """One of `world` gloo workers into `folder`/out-WORLD."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    made = training(Path(folder) / f"out-{world}", place=Place(rank, world, CPU), **settings)
    assert made.run()
    dist.destroy_process_group()
