"""What every verb does first: read the recipe, check it against the world, claim and lock the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import spec as specs
from engine.cluster.progress import Reporter, reporter
from engine.diffusion.schedulers import check_kind, check_name
from engine.errors import ConfigError
from engine.images.catalog import listed_classes, precheck
from engine.spec import RunSpec
from engine.spec.load import change_paths
from engine.storage.lock import hold
from engine.storage.paths import check_url
from engine.storage.run import SPEC, claim
from engine.storage.store import Store, open_store, sweep
from engine.training import learnt
from engine.training.matching import precheck as matching

if TYPE_CHECKING:
    from engine.conditions.table import Captions
    from engine.diffusion.reading import Readers

RECIPES = Path(__file__).parent / "recipes"
Drawn = Mapping[str, RunSpec]


@dataclass(frozen=True)
class Run:
    """A validated spec, the output that it owns, and where to tell the user."""

    spec: RunSpec
    store: Store
    reporter: Reporter


def load_recipe(recipe: str, overrides: Sequence[str] | None) -> RunSpec:
    """Read a recipe by path, or by the name of a packaged one (`quickstart`)."""
    path = Path(recipe)
    packaged = RECIPES / f"{recipe}.yaml"
    if not path.exists() and "/" not in recipe and packaged.is_file():
        path = packaged
    return specs.load(path, overrides or ())


def output_url(spec: RunSpec, output: str | None) -> str:
    """The run's place: as asked, or runs/NAME below the working folder."""
    return output if output is not None else f"runs/{spec.name}"


def check(spec: RunSpec) -> None:
    """Everything about the recipe that can be known in a moment, without Ray, torch or a GPU."""
    check_name(spec.generate.scheduler)
    change_paths(specs.plain(spec), lambda key, path: check_url(path) or path)
    for key, value in (("model.checkpoint", spec.model.checkpoint), ("model.lora", spec.model.lora)):
        if value and value.startswith("/") and not Path(value).exists():
            raise ConfigError(
                key,
                f"{value} does not exist",
                "give a diffusers directory or a Hub id" if key.endswith("checkpoint") else "give a .safetensors file",
            )
    if spec.model.checkpoint is None:
        check_kind(spec.generate.scheduler, False, "the closed-set generator")
    precheck(spec)
    matching.precheck(spec)


def check_models(spec: RunSpec, drawn: Drawn) -> None:
    """What only the models' files can tell, before the output is claimed or Ray starts; imports torch, hashes the weights.

    `drawn`: the recipes that are drawn from, by what they are called in errors.
    """
    from engine.conditions import job as conditions

    if spec.model.checkpoint is None:
        _check_learnt(drawn)
        _check_prompts(drawn, None)
        from engine.diffusion.tiny import models

        models.check(spec.pretrain, spec.images.size)
        widths = [spec.pretrain.clip.hidden] if spec.pretrain.denoiser == "unet" else []
        conditions.precheck(spec, widths=widths)
        if spec.match is not None and not isinstance(spec.match.targets, str):
            from engine.training.matching.run import check_closed_set

            check_closed_set(spec)
        return
    from engine.diffusion import checkpoint
    from engine.generation import job

    model = checkpoint.inspect(spec.model, spec.images.size)
    _check_learnt(drawn)
    job.check(spec, model, spec.model.lora)
    _check_prompts(drawn, model.path)
    if spec.match is not None:
        from engine.training.matching.run import check_model

        check_model(spec, model)


def _check_learnt(drawn: Drawn) -> None:
    for name, spec in drawn.items():
        try:
            learnt.check(spec)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.where}" if name else error.where, error.what, error.fix) from None


def _check_prompts(drawn: Drawn, folder: Path | None) -> None:
    """Whether every class that can be listed now is told by what is read of its prompt; `folder` holds the checkpoint."""
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
        from engine.diffusion.reading import of_folder

        return of_folder(folder)
    from engine.training.pretrain.run import readers

    return readers(spec, told)


def _itself(spec: RunSpec) -> Drawn:
    return {"": spec}


@contextmanager
def open_run(
    recipe: str,
    overrides: Sequence[str] | None,
    output: str | None,
    verb: str,
    check_more: Callable[[RunSpec, Store], None] = lambda spec, store: None,
    drawn: Callable[[RunSpec], Drawn] = _itself,
) -> Iterator[Run]:
    """Validate, with what the verb has to check besides, claim the output for this spec, and hold its lock while the block runs.

    `drawn` gives the recipes that the verb draws from by their names, where it is not the recipe itself.
    """
    spec = load_recipe(recipe, overrides)
    check(spec)
    store = open_store(output_url(spec, output), probe=True)
    check_more(spec, store)
    if not store.exists(SPEC):
        check_models(spec, drawn(spec))
    claim(store, spec)
    with hold(store, f"mimeo {verb}"):
        claim(store, spec, held=True)
        sweep(store)
        with reporter() as out:
            yield Run(spec, store, out)
