"""Publishes a finished fine-tune: its results, its files one by one, the marker last, so that `match/` counts only when
whole."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from engine.diffusion.families.family import Family
from engine.errors import OutputInUseError
from engine.spec import plain
from engine.storage import temporary
from engine.training import learnt
from engine.training.loop import Loop
from engine.training.loss_curve import curve
from engine.training.matching import adapter
from engine.training.matching.matching_precheck import FOLDER, MARKER, RESULTS
from engine.training.matching.matching_stage import MatchStage
from engine.training.trainingresults import MatchResults

if TYPE_CHECKING:
    from engine.training.matching.matching_job import Job

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def publish(job: Job, stage: MatchStage, loop: Loop, denoiser: nn.Module, family: Family, images: int) -> None:
    """Write results/match.json, then match/model file by file, then match/mimeo.json, which says what made them (as
    does one in match/model).

    What an attempt that was cut short has left is replaced. Raises OutputInUseError when another run writes there.
    """
    store = job.store
    store.replace(RESULTS, json.dumps(results(stage, loop, images), separators=(",", ":")).encode())
    for entry in list(store.list(f"{FOLDER}/")):
        store.remove(entry.name)
    with temporary.folder("match") as folder:
        adapter.save(folder, denoiser, job.match, job.checkpoint, family)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        for path in files:
            _create(job, f"{FOLDER}/{path.relative_to(folder)}", path)
    facts = {
        "kind": "distribution-matching fine-tune on the training split alone",
        "adapter": job.match.adapter,
        "family": family.name,
        "base": job.checkpoint.digest,
        "made_from": job.made_from,
        "match": plain(job.spec)["match"],
        "images": images,
        "parameters": sum(parameter.numel() for parameter in adapter.trained(denoiser)),
        "final_loss": loop.losses[-1],
        "visual_token": learnt.reads_features(job.spec),
        "files": digests,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    for name in (f"{FOLDER}/{learnt.MARKER}", MARKER):  # the first stays with the model when it is copied
        _create(job, name, json.dumps(facts, indent=1, sort_keys=True).encode())


def results(stage: MatchStage, loop: Loop, images: int) -> MatchResults:
    """The loss curve; both terms and the squared error at each noise level (clean to noisy) by phase of the
    training."""
    errors, terms = stage.kept["errors"].double().cpu(), stage.kept["terms"].double().cpu()
    seen = [phase for phase in range(len(terms)) if terms[phase, 2]]
    return {
        "images": images,
        **curve(loop.losses, loop.seconds),
        "phase_step": [(phase + 1) * stage.steps // len(terms) for phase in seen],
        "denoising": [float(terms[phase, 0] / terms[phase, 2]) for phase in seen],
        "mmd": [float(terms[phase, 1] / terms[phase, 2]) for phase in seen],
        "levels": [
            [float(total / count) if count else None for total, count in errors[phase].tolist()] for phase in seen
        ],
    }


def _create(job: Job, name: str, data: bytes | Path) -> None:
    if not job.store.create(name, data):
        where = f"{job.store.url}/{name}"
        raise OutputInUseError(where, "another run writes the same model", "let that one end first")
