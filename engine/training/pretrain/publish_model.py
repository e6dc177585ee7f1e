"""Publishes the trained stack: its files one by one, the marker last, so that `model/` counts only when it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from engine import output
from engine.diffusion.tiny import directory
from engine.diffusion.tiny.directory import Stack
from engine.diffusion.tiny.tiny_models import parameters
from engine.errors import OutputInUseError
from engine.storage import temporary
from engine.storage.store import Store
from engine.training.loss_curve import curve
from engine.training.trainingresults import HeldOutCurve, HeldOutError, PretrainResults

if TYPE_CHECKING:
    import torch

FOLDER = f"{output.MODEL}/"
MARKER = output.MODEL_MARKER
RESULTS = output.PRETRAIN
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers")


class Finished(TypedDict):
    """A finished stage as checkpoints hold it."""

    held_out: HeldOutCurve | HeldOutError | None
    weights: dict[str, torch.Tensor]
    losses: torch.Tensor
    seconds: float


class ModelFacts(TypedDict):
    """`mimeo.json` of a generator that was trained from scratch; `files`: their SHA-256."""

    kind: str
    made_from: Mapping[str, object]
    images: int
    parameters: dict[str, int]
    files: dict[str, str]
    libraries: dict[str, str]


def publish(
    store: Store, stack: Stack, finished: Mapping[str, Finished], made_from: Mapping[str, object], images: int
) -> None:
    """Write results/pretrain.json, then `model/` file by file, then its marker model/mimeo.json.

    What an attempt that was cut short has left in `model/` is replaced. Raises OutputInUseError when another run writes
    there.
    """
    store.replace(RESULTS, json.dumps(_results(finished, images), separators=(",", ":")).encode())
    for entry in list(store.list(FOLDER)):
        store.remove(entry.name)
    with temporary.folder("model") as folder:
        directory.save(stack, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        facts = _facts(stack, made_from, images, digests)
        for path in files:
            _create(store, FOLDER + str(path.relative_to(folder)), path)
    _create(store, MARKER, json.dumps(facts, indent=1, sort_keys=True).encode())


def _create(store: Store, name: str, data: bytes | Path) -> None:
    if not store.create(name, data):
        raise OutputInUseError(f"{store.url}/{name}", "another run writes the same model", "let that one end first")


def _facts(stack: Stack, made_from: Mapping[str, object], images: int, digests: dict[str, str]) -> ModelFacts:
    models = {"clip": stack.clip, "vae": stack.vae, stack.denoiser_name: stack.denoiser}
    models |= {"encoder": stack.encoder}
    models = {name: model for name, model in models.items() if model is not None}
    return {
        "kind": "closed-set generator, trained from scratch on the training split alone",
        "made_from": made_from,
        "images": images,
        "parameters": {name: parameters(model) for name, model in models.items()},
        "files": digests,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _results(finished: Mapping[str, Finished], images: int) -> PretrainResults:
    """Loss curves of the stages, each step or the means of up to 1,000 equal stretches of steps."""
    stages = {name: curve(done["losses"].tolist(), done["seconds"]) for name, done in finished.items()}
    held = {name: found for name, done in finished.items() if (found := done.get("held_out"))}
    return {"images": images, "stages": stages, "held_out": held}
