"""A very small pretraining on scikit-learn's digits without a Ray session, as function and as process (`python -m`)."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from engine.training.pretrain.pretrain_stage import TrainingSet
from engine.training.pretrain.pretrain_worker import Job, Training
from engine.training.setup import Place

PRETRAIN: dict[str, Any] = {
    "text_length": 8,
    "checkpoint_every": 3,
    "clip": {"hidden": 16, "heads": 2, "layers": 1, "steps": 8, "batch": 12},
    "vae": {"blocks": [8, 8], "steps": 8, "batch": 8},
    "unet": {"blocks": [16, 16], "head_dim": 8, "steps": 8, "batch": 8},
}
PIXEL: dict[str, Any] = {
    "space": "pixel",
    "pixel": {"blocks": [16, 16], "attention": [4], "head_dim": 8, "steps": 8, "batch": 8},
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CPU = torch.device("cpu")


def tiny_spec(**pretrain: Any) -> RunSpec:
    """A recipe of a few tiny steps; keywords override sections of `PRETRAIN`, key by key."""
    merged = {
        key: {**value, **pretrain.get(key, {})} if isinstance(value, dict) else value for key, value in PRETRAIN.items()
    }
    merged |= {key: value for key, value in pretrain.items() if not isinstance(value, dict)}
    return validate(
        {
            "name": "tiny",
            "seed": 7,
            "source": {"kind": "digits"},
            "images": {"size": 8},
            "split": {"train": 24, "test": 50},
            "pretrain": merged,
            "conditions": {"prompt": "a {class}, {caption}"},
            "resources": {"device": "cpu"},
        }
    )


def pixel_spec(generate: dict[str, Any] | None = None, **pretrain: Any) -> RunSpec:
    """The same for a generator in pixels; keywords override the sections of `PIXEL` too."""
    data = tiny_spec().model_dump(mode="json")
    own = {
        key: {**value, **pretrain.pop(key, {})} if isinstance(value, dict) else value for key, value in PIXEL.items()
    }
    data["pretrain"] |= {name: data["pretrain"][name] | pretrain.pop(name, {}) for name in ("clip", "views")} | own
    token = "own" if own["pixel"].get("features") else "none"
    return validate(
        data | {"pretrain": data["pretrain"] | pretrain, "generate": {"visual_token": token} | (generate or {})}
    )


def digits(count: int = 24) -> TrainingSet:
    """The first digits as a training set; captions say whether the number is odd."""
    data = load_digits()
    pixels = np.repeat((data.images[:count] * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=3)
    labels = torch.from_numpy(data.target[:count]).long()
    prompts = tuple(f"a {NAMES[label]}, {'odd' if label % 2 else 'even'}" for label in labels.tolist())
    return TrainingSet(torch.from_numpy(pixels), labels, prompts, tuple(f"a {name}" for name in NAMES), NAMES)


def training(
    folder: Path | str, spec: RunSpec, *, place: Place | None = None, deadline: float | None = None
) -> Training:
    """The training of `spec` into `folder` (or a URL) as one of its workers runs it."""
    job = Job(spec, open_store(str(folder)), {"spec": spec.name}, deadline)
    return Training(job, place or Place(0, 1, CPU), digits())


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of every published weight file."""
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps = int(sys.argv[2])
    if sys.argv[3:] == ["pixel"]:
        chosen = {"held_out": 0.25, "views": {"probability": 0.5}}
        training(Path(sys.argv[1]), pixel_spec(clip={"steps": steps}, pixel={"steps": steps}, **chosen)).run()
    else:
        training(Path(sys.argv[1]), tiny_spec(**{name: {"steps": steps} for name in ("clip", "vae", "unet")})).run()
