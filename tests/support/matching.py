"""Small fine-tunes of a random-weight generator on real digits without Ray Train, as function and as process (`python
-m`)."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from engine.training.latent_cache import Cache, Inputs
from engine.training.matching import data
from engine.training.matching.matching_job import Job
from engine.training.matching.matching_worker import Matching
from engine.training.setup import Place
from tests.support.outputs import Output
from tests.support.training import CPU

MATCH: dict[str, Any] = {
    "rank": 2,
    "steps": 8,
    "batch": 8,
    "lr": 1e-2,
    "mmd_weight": 1.0,
    "checkpoint_every": 3,
    "samples": 2,
    "precompute": False,
}


def match_spec(spec: RunSpec, **match: Any) -> RunSpec:
    """A recipe with the settings of `MATCH`, changed by keywords."""
    return validate(spec.model_dump(mode="json") | {"match": MATCH | match})


@dataclass(frozen=True)
class Parts:
    """What a fine-tune is made of, picklable: an `Output` with a match section, less its store."""

    output: Output
    spec: RunSpec

    def job(self, folder: Path, deadline: float | None = None) -> Job:
        """The fine-tune into `folder`."""
        return Job(
            self.spec, open_store(str(folder)), self.output.checkpoint, {"match": str(self.spec.match)}, deadline
        )

    def matching(
        self, folder: Path, *, place: Place | None = None, inputs: Inputs | None = None, deadline: float | None = None
    ) -> Matching:
        """It, as one of its workers runs it."""
        rows = self.output.catalog.split("train")
        job = self.job(folder, deadline)
        return Matching(job, place or Place(0, 1, CPU), rows, self.output.conditions, inputs)

    def cache(self) -> Cache:
        """Inputs computed at once."""
        assert self.spec.match is not None
        pipeline = data.pipeline_of(self.output.checkpoint, "cpu", self.spec.match)
        encoding = data.Encoding(pipeline, flip=data.flips(self.spec))
        own = self.spec.match.visual_token != "none"
        place = encoding.encoder.place(self.output.conditions.features.shape[1]) if own else None
        return data.computed(self.spec, self.output.catalog.split("train"), self.output.conditions, encoding, place)


def run_workers(function: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """`function(rank, *args)` in `count` processes: forked from a fresh server, since a fork of a process that is
    connected to Ray breaks that connection."""
    multiprocessing.set_forkserver_preload([__name__])
    mp.start_processes(function, args=args, nprocs=count, start_method="forkserver")


def lora_digest(folder: Path) -> str:
    """SHA-256 of the LoRA that a fine-tune has written."""
    return hashlib.sha256((folder / "match/model/pytorch_lora_weights.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":  # PICKLED FOLDER: slowly enough to be killed between checkpoints
    torch.set_num_threads(1)
    parts: Parts = pickle.loads(Path(sys.argv[1]).read_bytes())
    found = parts.matching(Path(sys.argv[2]))
    loss = found.stage.loss

    def slow(module: torch.nn.Module, step: int) -> torch.Tensor:
        time.sleep(0.05)
        return loss(module, step)

    found.stage.loss = slow  # type: ignore[method-assign]
    found.run()
