"""What every verb does first: read the recipe, check it against the world, claim and lock the output."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import spec as specs
from engine.cluster.progress import reporter
from engine.diffusion.schedulers import check_kind, check_name
from engine.errors import ConfigError, DataError
from engine.images.catalog import listed_classes, precheck
from engine.images.sources.overlap import check_output
from engine.run.stages import Run
from engine.shards.seal import sealing
from engine.spec import RunSpec
from engine.spec.load import at_home, change_paths, is_local
from engine.storage.abstract_store import storage_error
from engine.storage.claim import SPEC, claim
from engine.storage.lock import hold
from engine.storage.paths import WILD, check_url
from engine.storage.store import Store, open_store, sweep
from engine.text import redacted
from engine.training import learnt
from engine.training.matching import matching_precheck as matching

if TYPE_CHECKING:
    from engine.conditions.table import Captions
    from engine.diffusion.checkpoint import Checkpoint
    from engine.diffusion.prompt_cuts import Readers

RECIPES = Path(__file__).parent / "recipes"
Drawn = Mapping[str, RunSpec]


def load_recipe(recipe: str, overrides: Sequence[str] | None) -> RunSpec:
    """Read a recipe by path, or by the name of a packaged one (`quickstart`)."""
    path = Path(recipe)
    packaged = RECIPES / f"{recipe}.yaml"
    if not os.path.lexists(path) and "/" not in recipe and os.path.lexists(packaged):
        path = packaged
    return specs.load(path, overrides or ())


def output_url(spec: RunSpec, output: str | None) -> str:
    """The run's place: as asked, or runs/NAME below the working folder."""
    return output if output is not None else f"runs/{spec.name}"


def check(spec: RunSpec) -> None:
    """Everything about the recipe that can be known in a moment, without Ray, torch or a GPU."""
    check_name(spec.generate.scheduler)
    _check_secrets(specs.plain(spec))
    change_paths(specs.plain(spec), _check_place)
    for key, value in (("model.checkpoint", spec.model.checkpoint), ("model.lora", spec.model.lora)):
        if value and value.startswith("/") and not os.path.lexists(value):
            raise ConfigError(
                key,
                f"{value} does not exist",
                "give a diffusers directory or a Hub id" if key.endswith("checkpoint") else "give a .safetensors file",
            )
    if spec.model.checkpoint is None:
        kind = spec.pretrain.pixel.objective if spec.pretrain.kind == "pixel" else "diffusion"
        check_kind(spec.generate.scheduler, kind, "the closed-set generator")
    precheck(spec)
    matching.precheck(spec)


def _check_place(key: str, place: str) -> str:
    """Refuse a URL that no store has, and a path that the system itself refuses: no rights, too long, a loop of links.

    What is merely absent is left to whoever reads it.
    """
    check_url(place)
    if not is_local(place):
        return place
    parts = at_home(key, place).parts
    fixed = Path(*itertools.takewhile(lambda part: not any(mark in part for mark in WILD), parts))
    kind = DataError if ".source." in f".{key}" else ConfigError
    try:
        mode = fixed.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return place
    except OSError as error:
        refused = storage_error(error, place)
        raise kind(key, f"{place}: {refused.what}", refused.fix) from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise kind(key, f"{place} is no regular file and no folder", "give another place")
    if not os.access(fixed, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise kind(key, f"{place}: permission denied", "change its permissions, or give another place")
    return place


def _check_secrets(node: Any, key: str = "") -> None:
    """Refuse a URL with a password or a signature anywhere in a recipe: it would be written to the output and its
    report."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_secrets(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for value in node:
            _check_secrets(value, key)
    elif isinstance(node, str) and "://" in node and redacted(node) != node:
        raise ConfigError(key, f"{node} holds a password, a key or a signature", "give it in the environment")


def check_models(spec: RunSpec, drawn: Drawn) -> None:
    """What only the models' files can tell, before the output is claimed or Ray starts; imports torch, hashes the
    weights.

    `drawn`: the recipes that are drawn from, by what they are called in errors.
    """
    from engine.conditions import conditions_job as conditions

    if spec.model.checkpoint is None:
        _check_learnt(drawn)
        _check_prompts(drawn, None)
        from engine.diffusion.tiny import tiny_models

        tiny_models.check(spec.pretrain, spec.images.size)
        tiny_models.check_generate(spec.pretrain, spec.generate)
        told = spec.pretrain.kind == "unet" or (spec.pretrain.kind == "pixel" and spec.pretrain.pixel.features)
        encoder = spec.pretrain.encoder
        widths = [encoder.blocks[-1] if encoder else spec.pretrain.clip.hidden] if told else []
        conditions.precheck(spec, widths=widths)
        if spec.match is not None:
            from engine.training.matching.matching_run import check_closed_set

            check_closed_set(spec)
        return
    from engine.diffusion import checkpoint
    from engine.generation import generation_job

    model = checkpoint.inspect(spec.model, spec.images.size)
    _check_learnt(drawn)
    generation_job.check(spec, model, spec.model.lora)
    _check_prompts(drawn, model.path)
    if model.classes is not None or spec.model.class_ids:
        _check_classes(spec, model)
    if spec.match is not None:
        from engine.training.matching.matching_run import check_model

        check_model(spec, model)


def _check_learnt(drawn: Drawn) -> None:
    for name, spec in drawn.items():
        try:
            learnt.check(spec)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.where}" if name else error.where, error.what, error.fix) from None


def _check_prompts(drawn: Drawn, folder: Path | None) -> None:
    """Whether every class that can be listed now is told by what is read of its prompt; `folder` holds the
    checkpoint."""
    from engine.conditions import cuts

    names: tuple[str, ...] | None = None
    seen: set[tuple[str, int]] = set()
    for name, spec in drawn.items():
        if (key := (spec.conditions.prompt, spec.pretrain.text_length)) in seen:
            continue
        seen.add(key)
        names = listed_classes(spec) if names is None else names
        told = cuts.of_classes(names)
        if not names:
            return
        try:
            cuts.check(_readers(spec, told, folder), spec, told)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.where}" if name else error.where, error.what, error.fix) from None


def _readers(spec: RunSpec, told: Captions, folder: Path | None) -> Readers:
    """The tokenizers of the checkpoint in `folder`, or the one that the closed-set generator will have."""
    if folder is not None:
        from engine.diffusion.prompt_cuts import of_folder

        return of_folder(folder)
    from engine.training.pretrain.pretrain_run import readers

    return readers(spec, told)


def _itself(spec: RunSpec) -> Drawn:
    return {"": spec}


def _check_classes(spec: RunSpec, model: Checkpoint) -> None:
    """Whether the generator knows the classes of the source, where that can be listed now."""
    from engine.diffusion import classes

    if names := listed_classes(spec):
        classes.numbers(model, names, spec.model)


@contextmanager
def open_run(
    recipe: str,
    overrides: Sequence[str] | None,
    output: str | None,
    verb: str,
    check_more: Callable[[RunSpec, Store], None] = lambda spec, store: None,
    drawn: Callable[[RunSpec], Drawn] = _itself,
) -> Iterator[Run]:
    """Validate, with what the verb has to check besides, claim the output for this spec, and hold its lock while the
    block runs.

    `drawn` gives the recipes that the verb draws from by their names, where it is not the recipe itself.
    """
    spec = load_recipe(recipe, overrides)
    check(spec)
    place = output_url(spec, output)
    if not open_store(place).exists(SPEC):
        check_output(spec, place)
    store = open_store(place, probe=True)
    check_more(spec, store)
    if not store.exists(SPEC):
        check_models(spec, drawn(spec))
    claim(store, spec)
    with hold(store, f"mimeo {verb}"), sealing(store):
        claim(store, spec, held=True)
        sweep(store)
        with reporter() as out:
            yield Run(spec, store, out)
