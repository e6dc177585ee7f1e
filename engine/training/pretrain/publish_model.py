"""Publishes the trained stack: its files one by one, the marker last, so that `model/` counts only when it is whole."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import output
from engine.diffusion.tiny import directory
from engine.diffusion.tiny.directory import Stack
from engine.diffusion.tiny.tiny_models import parameters
from engine.errors import OutputInUseError
from engine.storage import temporary
from engine.storage.store import Store
from engine.training.loss_curve import curve

FOLDER = f"{output.MODEL}/"
MARKER = output.MODEL_MARKER
RESULTS = output.PRETRAIN
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers")


def publish(store: Store, stack: Stack, finished: dict[str, Any], made_from: dict[str, Any], images: int) -> None:
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


def _facts(stack: Stack, made_from: dict[str, Any], images: int, digests: dict[str, str]) -> dict[str, Any]:
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


def _results(finished: dict[str, Any], images: int) -> dict[str, Any]:
    """Loss curves of the stages, each step or the means of up to 1,000 equal stretches of steps."""
    stages = {name: curve(done["losses"].tolist(), done["seconds"]) for name, done in finished.items()}
    held = {name: done["held_out"] for name, done in finished.items() if done.get("held_out")}
    return {"images": images, "stages": stages, "held_out": held}
