"""A closed-set run that is really trained, on 24 digits and in a few seconds, for tests that need a generator of our
own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.cluster.progress import PlainReporter
from engine.conditions import conditions_job as conditions_job
from engine.conditions.table import load_captions
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from engine.training.pretrain.pretrain_run import made_from
from engine.training.pretrain.pretrain_worker import Job, Training, training_set
from engine.training.setup import Place
from tests.support.training import CPU, tiny_spec


@dataclass(frozen=True)
class Trained:
    """A run whose catalog, captions and `model/` are done."""

    spec: RunSpec
    store: Store
    catalog: Catalog

    @property
    def model(self) -> Path:
        """The diffusers directory."""
        folder = self.store.local("model")
        assert folder is not None
        return folder


def trained_run(folder: Path, spec: RunSpec | None = None) -> Trained:
    """Catalogue, caption and train in `folder`, inside a Ray session; only Ray Train's own start is left out."""
    spec = spec or tiny_spec()
    store = open_store(str(folder))
    claim(store, spec)
    catalog = catalogs.build(spec, store, PlainReporter())
    conditions_job.caption(spec, catalog, store, PlainReporter())
    captions = load_captions(store)
    job = Job(spec, store, made_from(spec, catalog, captions))
    Training(job, Place(0, 1, CPU), training_set(spec, catalog.split("train"), captions, CPU)).run()
    return Trained(spec, store, catalog)
