"""Trains the closed-set generator under Ray Train and publishes it as one diffusers directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pyarrow as pa
import torch

from engine import output
from engine.cluster.board import Board, BoardReporter, follow
from engine.cluster.progress import Reporter
from engine.conditions import cuts
from engine.conditions.prompts import fill
from engine.conditions.table import Captions, load_captions
from engine.diffusion.families.dit import CLASSES
from engine.diffusion.prompt_cuts import Readers
from engine.diffusion.tiny import tiny_models
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.errors import ConfigError, DataError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, digest, plain
from engine.spec.training import ViewsSpec
from engine.storage import documents
from engine.storage.store import Store
from engine.training import setup, training_state
from engine.training.pretrain.pretrain_worker import CHECKPOINTS, Config, Job, Training, train, training_set
from engine.training.pretrain.publish_model import MARKER
from engine.training.trainingresults import Marker

VERSION = 1  # raised when the same inputs would give another model


def pretrain(
    spec: RunSpec,
    catalog: Catalog,
    store: Store,
    reporter: Reporter,
    *,
    time_limit: float | None = None,
    here: str | None = None,
) -> setup.Ended:
    """Train CLIP, the encoder if the recipe has one, VAE, then U-Net or DiT from scratch on the training split, in one
    Ray Train run; write `model/`.

    `here` names a device on which this process does it all by itself.

    Call it inside a Ray session, with the captions stored. Does nothing when `model/` is whole; otherwise goes on from
    the newest whole checkpoint. `time_limit` (seconds) ends it cleanly, with a checkpoint. Raises ConfigError for sizes
    that do not fit together, DataError for a loss that is not finite, and for captions or a model that belong to other
    images.
    """
    captions = load_captions(store)
    rows = catalog.split("train")
    inputs = made_from(spec, catalog, captions)
    if store.exists(MARKER):
        _check_marker(store, inputs)
        training_state.remove_all(store, CHECKPOINTS)
        return {"done": True, "message": "nothing to do: model/ is whole"}
    _check(spec, rows, captions)
    cuts.tell(cuts.check(readers(spec, captions), spec, captions), "pretrain", reporter.note)
    deadline = None if time_limit is None else time.time() + time_limit
    job = Job(spec, store, inputs, deadline)
    if here is None:
        board = Board.create()
        config: Config = {"job": replace(job, board=board), "rows": rows, "captions": captions}
        with follow(board, reporter):
            out = setup.run(train, config, name=f"pretrain-{digest(inputs)[:16]}", resources=spec.resources)
    else:
        place = setup.Place(0, 1, torch.device(here))
        job = replace(job, board=reporter.board if isinstance(reporter, BoardReporter) else None)
        out = Training(job, place, training_set(spec, rows, captions, place.device)).run()
    if out["done"]:
        training_state.remove_all(store, CHECKPOINTS)
    return out


def made_from(spec: RunSpec, catalog: Catalog, captions: Captions) -> dict[str, object]:
    """What decides the trained weights, but for hardware, library versions and the number of workers."""
    settings = plain(spec)
    settings["pretrain"].pop("checkpoint_every")
    normalise = {"normalise": True} if spec.conditions.features.normalise else {}
    unused = {
        "unet": ("denoiser", "dit", "pixel", "space"),
        "dit": ("unet", "pixel", "space"),
        "pixel": ("unet", "dit", "vae"),
    }
    for part in unused[spec.pretrain.kind]:
        settings["pretrain"].pop(part)  # a U-Net's settings are those of before there was a choice
    if spec.pretrain.kind == "pixel" and spec.pretrain.pixel.objective == "edm":
        settings["pretrain"]["pixel"].pop("objective")  # as before there was a choice
    none = {"views": ViewsSpec().model_dump(mode="json"), "held_out": 0.0, "encoder": None}
    for part, absent in none.items():
        if settings["pretrain"][part] == absent:
            settings["pretrain"].pop(part)
    return {
        "version": VERSION,
        "seed": spec.seed,
        "catalog": catalog.digest,
        "captions": digest([list(captions.keys), list(captions.captions), list(captions.class_names)]),
        "prompt": spec.conditions.prompt,
        "images": settings["images"],
        "pretrain": settings["pretrain"],
        **normalise,
    }


def _check_marker(store: Store, made_from: Mapping[str, object]) -> None:
    fix = "use a new output, or remove model/ to train it again"
    if documents.read(store, MARKER, Marker, fix)["made_from"] != made_from:
        what = "was trained on other images or with other settings"
        raise DataError(f"{store.url}/model", what, fix)


def readers(spec: RunSpec, captions: Captions) -> Readers:
    """The tokenizer that the generator will have, learnt from these prompts; none where it is told classes only."""
    if spec.pretrain.kind != "unet":
        return Readers({}, lambda name: None)
    template, length = spec.conditions.prompt, spec.pretrain.text_length
    texts = [*captions.prompts(template), *(fill(template, name, "") for name in captions.class_names)]
    return Readers({"tokenizer": length}, lambda name: train_tokenizer(texts, length))


def _check(spec: RunSpec, rows: pa.Table, captions: Captions) -> None:
    tiny_models.check(spec.pretrain, spec.images.size)
    if not rows.num_rows:
        raise DataError("split.train", "holds no image", "raise it")
    if tuple(rows["key"].to_pylist()) != captions.keys:
        raise DataError(output.CAPTIONS, "belongs to other images", "remove conditions/ and run again")
    if spec.pretrain.kind == "dit" and len(captions.class_names) > CLASSES:
        what = f"dit knows {CLASSES} classes, the training images have {len(captions.class_names)}"
        raise ConfigError("pretrain.denoiser", what, "set it to unet")
    most = spec.resources.train_workers
    kind = spec.pretrain.kind
    spec.pretrain.holds_out(rows.num_rows)
    parts = ("clip", *(("vae",) if kind != "pixel" else ()), kind, *(("encoder",) if spec.pretrain.encoder else ()))
    for name, workers in product(parts, range(spec.resources.train_workers_min or most, most + 1)):
        batch = getattr(spec.pretrain, name).batch
        if batch % workers:
            what = f"{workers} workers cannot share pretrain.{name}.batch {batch} evenly"
            raise ConfigError("resources.train_workers", what, "choose a number that divides the batches")
