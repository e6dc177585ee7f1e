"""Outputs that are ready for generation: real digits catalogued and conditioned, with a random-weight checkpoint beside
them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engine.cluster.progress import PlainReporter, Reporter
from engine.conditions import conditions_job as conditions_job
from engine.conditions import table
from engine.conditions.table import Conditions
from engine.diffusion import checkpoint as checkpoints
from engine.diffusion.checkpoint import Checkpoint
from engine.generation import generation_job
from engine.generation.generation_job import Summary
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.spec import RunSpec, validate
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from tests.support.checkpoints import write_checkpoint

GENERATE = {"count": 60, "shard_size": 20, "num_inference_steps": 3, "scheduler": "ddim", "guidance_scale": 2.0}


def digits_spec(checkpoint: Path, generate: dict[str, Any] | None = None, **sections: Any) -> RunSpec:
    """A run over 40 training digits; `generate` overrides `GENERATE`, `sections` the other parts of the recipe."""
    recipe = {
        "name": "digits",
        "source": {"kind": "digits"},
        "images": {"size": 8},
        "split": {"train": 40, "validation": 0, "test": 50},
        "model": {"checkpoint": str(checkpoint)},
        "conditions": {"prompt": "photo of digit {class}"},
        "generate": {**GENERATE, **(generate or {})},
        "resources": {"device": "cpu", "actors": 1, "batch_size": 8, "cpus_per_actor": 0.5},
    }
    return validate(recipe | sections)


@dataclass(frozen=True)
class Output:
    """Everything that `job.generate` takes."""

    spec: RunSpec
    store: Store
    checkpoint: Checkpoint
    conditions: Conditions
    catalog: Catalog

    def generate(self, reporter: Reporter | None = None, **options: Any) -> Summary:
        """Run the job, inside a session."""
        return generation_job.generate(
            self.spec,
            self.store,
            self.checkpoint,
            self.conditions,
            self.catalog,
            reporter or PlainReporter(),
            **options,
        )


@cache
def ready(base: Path) -> Output:
    """A prepared output with a digits-shaped checkpoint, made once under `base` (pytest's base folder), inside a
    session."""
    folder = base / "ready-digits"
    return prepare(folder / "out", digits_spec(write_checkpoint(folder / "model"), {"shard_size": 10}))


def prepare(folder: Path, spec: RunSpec) -> Output:
    """Catalogue and condition the digits in `folder`, inside a session; what is there already is used again."""
    store = open_store(str(folder))
    claim(store, spec)
    reporter = PlainReporter()
    catalog = catalogs.build(spec, store, reporter)
    checkpoint = checkpoints.inspect(spec.model, spec.images.size)
    conditions_job.caption(spec, catalog, store, reporter)
    conditions_job.features(spec, catalog, checkpoint.path, store, reporter)
    return Output(spec, store, checkpoint, table.load(store, spec), catalog)
