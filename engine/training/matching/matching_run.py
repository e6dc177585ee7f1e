"""Fine-tunes the generator by distribution matching under Ray Train and publishes what it has learnt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.conditions import cuts, featuremodel, row_pool
from engine.conditions.table import Conditions, load
from engine.diffusion import classes, prompt_cuts
from engine.diffusion.checkpoint import Checkpoint, check_process
from engine.errors import ConfigError, DataError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, digest, plain
from engine.storage import documents
from engine.storage.store import Store
from engine.training import setup
from engine.training import training_state as checkpoints
from engine.training.matching import adapter, data
from engine.training.matching.matching_job import Job
from engine.training.matching.matching_precheck import MARKER, precheck
from engine.training.matching.matching_worker import CHECKPOINTS, Config, Matching, train
from engine.training.trainingresults import Marker

VERSION = 1  # raised when the same inputs would give another adapter
NOT_INPUTS = ("checkpoint_every", "precompute", "gradient_checkpointing", "samples", "sample_every")


def match(
    spec: RunSpec,
    store: Store,
    checkpoint: Checkpoint,
    catalog: Catalog,
    reporter: Reporter,
    *,
    time_limit: float | None = None,
    here: str | None = None,
) -> setup.Ended:
    """Fine-tune on the training split in one Ray Train run and write `match/`; call it inside a Ray session.

    `here` names a device on which this process does it all by itself.

    Conditions must be stored. Does nothing when `match/` is whole; otherwise goes on from the newest whole checkpoint.
    `time_limit` (seconds) ends it cleanly, with a checkpoint. Raises ConfigError for what the checkpoint cannot do,
    DataError for a loss that is not finite, and for conditions or a result that belong to other images.
    """
    conditions, rows = load(store, spec), catalog.split("train")
    numbers = classes.numbers(checkpoint, conditions.class_names, spec.model)
    conditions = replace(conditions, class_numbers=numbers)
    inputs = made_from(spec, checkpoint, catalog, conditions)
    if store.exists(MARKER):
        _check_marker(store, inputs)
        _clean(store)
        return {"done": True, "message": "nothing to do: match/ is whole"}
    check_model(spec, checkpoint)
    read = cuts.check(prompt_cuts.of_folder(checkpoint.path), spec, conditions, drawn=False)
    cuts.tell(read, "match", reporter.note)
    _check_rows(spec, tuple(rows["key"].to_pylist()), conditions)
    deadline = None if time_limit is None else time.time() + time_limit
    if spec.match is not None and spec.match.precompute:
        run = row_pool.run if here is None else row_pool.here
        data.precompute(spec, checkpoint, rows, conditions, store, input_facts(spec, inputs), reporter, run=run)
    job = Job(spec, store, checkpoint, inputs, deadline, features=_features_digest(spec, checkpoint))
    if here is None:
        board = Board.create()
        config: Config = {"job": replace(job, board=board), "rows": rows, "conditions": conditions}
        with follow(board, reporter):
            out = setup.run(train, config, name=f"match-{digest(inputs)[:16]}", resources=spec.resources)
    else:
        place = setup.Place(0, 1, torch.device(here))
        out = Matching(job, place, rows, conditions).run()
    if out["done"]:
        _clean(store)
    return out


def _features_digest(spec: RunSpec, checkpoint: Checkpoint) -> str:
    if spec.match is None or spec.match.mmd != "kernel_feature":
        return ""
    return featuremodel.resolve(spec.conditions.features, checkpoint.path).digest


def made_from(spec: RunSpec, checkpoint: Checkpoint, catalog: Catalog, conditions: Conditions) -> dict[str, object]:
    """What decides the trained weights, but for hardware, library versions and the number of workers."""
    settings, numbers = plain(spec), conditions.class_numbers
    return {
        "version": VERSION,
        "seed": spec.seed,
        "base": checkpoint.digest,
        "catalog": catalog.digest,
        "conditions": conditions.digest(),
        "images": settings["images"],
        "match": {key: value for key, value in settings["match"].items() if key not in NOT_INPUTS},
        **({} if classes.is_order(numbers) else {"class_numbers": numbers and list(numbers)}),
    }


def input_facts(spec: RunSpec, inputs: Mapping[str, object]) -> dict[str, object]:
    """What decides the stored inputs, of what decides the weights: nothing of the training's own settings."""
    assert spec.match is not None
    names = ("version", "catalog", "conditions", "base", "images", "class_numbers")
    facts = {name: inputs[name] for name in names if name in inputs}
    return facts | {"flip": data.flips(spec), "dtype": spec.match.dtype}


def check_model(spec: RunSpec, checkpoint: Checkpoint) -> None:
    """Refuse, without a GPU, a fine-tune that the checkpoint cannot have (ConfigError)."""
    precheck(spec)
    if spec.match is not None:
        check_process(checkpoint)
        adapter.check_targets(checkpoint, spec.match)


def check_closed_set(spec: RunSpec) -> None:
    """Refuse targets of the recipe's own that the generator which `pretrain` will make does not have (ConfigError)."""
    from engine.diffusion.tiny import pixelmodels
    from engine.diffusion.tiny.tiny_models import build_dit, build_unet

    pretrain, size = spec.pretrain, spec.images.size
    by_name = spec.match is not None and not isinstance(spec.match.targets, str)
    if spec.match is None or spec.match.adapter != "lora" or not (by_name or pretrain.kind == "pixel"):
        return  # the others have the layers of every preset
    with torch.device("meta"):
        denoiser: torch.nn.Module = {
            "dit": lambda: build_dit(pretrain.dit, pretrain.vae, size),
            "unet": lambda: build_unet(pretrain.unet, pretrain.vae, size, pretrain.clip.hidden),
            "pixel": lambda: pixelmodels.build_unet(pretrain.pixel, size, classes=1),
        }[pretrain.kind]()
    adapter.targets_of(denoiser, spec.match)


def _check_rows(spec: RunSpec, keys: tuple[str, ...], conditions: Conditions) -> None:
    if keys != conditions.keys:
        raise DataError(output.CONDITIONS, "belong to other images", "remove conditions/ and run again")
    workers = spec.resources.train_workers
    if workers > len(keys):
        what = f"{workers} workers are more than the {len(keys)} training images"
        raise ConfigError("resources.train_workers", what, "ask for fewer")


def _check_marker(store: Store, inputs: Mapping[str, object]) -> None:
    fix = "use a new output, or remove match/ to train it again"
    if documents.read(store, MARKER, Marker, fix)["made_from"] != inputs:
        what = "was trained on other images or with other settings"
        raise DataError(f"{store.url}/match", what, fix)


def _clean(store: Store) -> None:
    """Remove what only the training needed."""
    checkpoints.remove_all(store, CHECKPOINTS)
    store.remove(data.INPUTS)
