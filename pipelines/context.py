"""What every verb does first: read the recipe, check it against the world, claim and lock the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import spec as specs
from engine.cluster.progress import Reporter, reporter
from engine.diffusion.schedulers import check_kind, check_name
from engine.errors import ConfigError
from engine.images.catalog import precheck
from engine.spec import RunSpec
from engine.spec.load import change_paths
from engine.storage.lock import hold
from engine.storage.paths import check_url
from engine.storage.run import SPEC, claim
from engine.storage.store import Store, open_store, sweep
from engine.training.matching import precheck as matching

if TYPE_CHECKING:
    from engine.diffusion.checkpoint import Checkpoint

RECIPES = Path(__file__).parent / "recipes"


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


def check_models(spec: RunSpec) -> None:
    """What only the models' files can tell, before the output is claimed or Ray starts; imports torch, hashes the weights."""
    from engine.conditions import job as conditions

    if spec.model.checkpoint is None:
        from engine.diffusion.tiny import models

        models.check(spec.pretrain, spec.images.size)
        models.check_generate(spec.pretrain, spec.generate)
        widths = [spec.pretrain.clip.hidden] if spec.pretrain.denoiser == "unet" else []
        conditions.precheck(spec, widths=widths)
        if spec.match is not None and not isinstance(spec.match.targets, str):
            from engine.training.matching.run import check_closed_set

            check_closed_set(spec)
        return
    from engine.diffusion import checkpoint
    from engine.generation import job

    model = checkpoint.inspect(spec.model, spec.images.size)
    job.check(spec, model, spec.model.lora)
    if model.classes is not None or spec.model.class_ids:
        _check_classes(spec, model)
    if spec.match is not None:
        from engine.training.matching.run import check_model

        check_model(spec, model)


def _check_classes(spec: RunSpec, model: Checkpoint) -> None:
    """Whether the generator knows the classes of the source, where that can be listed now."""
    from engine.diffusion import classes
    from engine.images.listing import Listing
    from engine.images.sources import hub

    with suppress(hub.NotCached):
        listing = Listing(spec)
        for _ in listing.groups():
            pass
        classes.numbers(model, listing.classes()[0], spec.model)


@contextmanager
def open_run(
    recipe: str,
    overrides: Sequence[str] | None,
    output: str | None,
    verb: str,
    check_more: Callable[[RunSpec, Store], None] = lambda spec, store: None,
) -> Iterator[Run]:
    """Validate, with what the verb has to check besides, claim the output for this spec, and hold its lock while the block runs."""
    spec = load_recipe(recipe, overrides)
    check(spec)
    store = open_store(output_url(spec, output), probe=True)
    check_more(spec, store)
    if not store.exists(SPEC):
        check_models(spec)
    claim(store, spec)
    with hold(store, f"mimeo {verb}"):
        claim(store, spec, held=True)
        sweep(store)
        with reporter() as out:
            yield Run(spec, store, out)
