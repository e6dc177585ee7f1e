"""`mimeo plan`: what a run would make and cost, without a GPU, Ray or a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from engine import output as tree
from engine.cluster.terminal import Terminal
from engine.conditions import prompts
from engine.conditions.stored import CAPTIONS
from engine.conditions.table import load_captions
from engine.diffusion import hub
from engine.diffusion.checkpoint import size_note
from engine.diffusion.layout import INDEX
from engine.errors import DataError
from engine.generation.sample_plan import Plan
from engine.images.listing import planned_labels
from engine.images.sources.overlap import check_output
from engine.shards import cost, records
from engine.shards.names import PLAN, PlanFacts, shard_name
from engine.shards.records import Record
from engine.spec import RunSpec, sample_key, spec_hash
from engine.storage.claim import SPEC, read_spec
from engine.storage.store import Store, open_store
from engine.training import effort, learnt
from pipelines.context import check, load_recipe, output_url
from pipelines.options import Output, Recipe, Set

RAW_SHARE = {
    "png": 0.6,
    "jpg": 0.15,
    "webp": 0.1,
}  # of 3 bytes a pixel; rough, replaced by the records of a run once there are any
MEMBER_BYTES = 3 * 512 + 3 * 256 + 1024  # headers, padding and JSON of one sample in a tar


def begun(spec: RunSpec, output: str | None) -> Store | None:
    """The output, where a run that makes the same samples was begun there; what it has made and measured counts."""
    place = output_url(spec, output)
    store = open_store(place)
    if not store.exists(SPEC):
        check_output(spec, place)
    return store if store.exists(SPEC) and sample_key(read_spec(store)) == sample_key(spec) else None


def train_labels(spec: RunSpec, store: Store | None) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Labels of the training rows, class names, and where they come from: the run's catalog, or a scan of the
    source."""
    if store is not None and store.exists(tree.CATALOG_DONE):
        from engine.images import catalog

        made = catalog.load(store)
        return made.split("train")["label"].to_numpy(), made.class_names, "the run's catalog"
    labels, names = planned_labels(spec)
    return labels, names, "a scan of the source (bad and duplicate images are not known yet)"


def examples(spec: RunSpec, store: Store | None, plan: Plan, names: tuple[str, ...]) -> list[str]:
    """Three prompts of the plan; captions appear once `mimeo condition` has made them."""
    template, rows = spec.conditions.prompt, plan.rows(0, min(3, plan.count))
    suffix = spec.generate.quality_suffix
    if store is not None and store.exists(CAPTIONS):
        made = load_captions(store).prompts(template)
        return [made[anchor] + suffix for anchor in rows.anchor]
    return [prompts.fill(template, names[label], "<caption>") + suffix for label in rows.label]


def reading(spec: RunSpec, store: Store | None, names: tuple[str, ...]) -> tuple[str, str]:
    """What is cut of the prompts, where the checkpoint lies here: of all of them once there are captions, else of the
    classes'."""
    from engine.conditions import cuts
    from engine.diffusion.prompt_cuts import of_folder

    model = spec.model
    folder = hub.known(model.checkpoint, model.revision) if model.checkpoint is not None else None
    if model.checkpoint is None and store is not None and store.exists(tree.MODEL_MARKER):
        folder = store.local("model")
    if folder is None:
        return "prompts cut", "known once the generator is here"
    captioned = store is not None and store.exists(CAPTIONS)
    told = load_captions(store) if store is not None and captioned else cuts.of_classes(names)
    known = captioned or spec.conditions.caption.kind == "class"
    found = cuts.check(of_folder(folder), spec, told)
    whole = f"none of {found.prompts:,}" if captioned else "none" if known else "none without their captions"
    return "prompts cut", "; ".join(found.lines) or whole


def made(store: Store | None) -> list[Record]:
    """The records of the shards that an output already has."""
    if store is None or not store.exists(PLAN):
        return []
    return [record for record in records.published(store, PlanFacts.load(store)).values() if record is not None]


def _bytes_each(found: list[Record]) -> float | None:
    count = sum(record.count for record in found)
    return sum(record.bytes for record in found) / count if count else None


def ahead(spec: RunSpec, store: Store | None, found: list[Record]) -> list[tuple[str, str]]:
    """Device time, energy and price of what is left to make, at the rate of the shards that are there."""
    if store is None or not found:
        return [("device time", "known after the first shard")]
    so_far, price = cost.total(found, cost.usages(store)), spec.resources.price_per_hour
    same = spec_hash(read_spec(store)) == spec_hash(spec)
    left = spec.generate.count - (sum(record.planned for record in found) if same else 0)
    if not so_far.finished.seconds:  # records of an older engine
        hours = left * sum(r.seconds for r in found) / sum(r.planned for r in found) / cost.HOUR_S
        return [("actor time", f"{cost.figure(hours)} hours on one actor for {left:,} images, at this run's rate")]
    need, unit = so_far.ahead(left), so_far.unit
    hours = need.seconds / cost.HOUR_S
    rate = f"at the rate of the {so_far.shards:,} shard{'s' if so_far.shards > 1 else ''} made here"
    rows = [
        (
            "device time left" if same else "device time",
            f"{cost.figure(hours)} {unit}-hours for {left:,} images, {rate}",
        )
    ]
    if need.metered:
        rows.append(("energy", f"{cost.figure(need.joules / cost.KWH_J)} kWh for these"))
    if price is not None:
        each = so_far.per_1000(price)
        paid = f"; {cost.figure(each)} per 1,000 accepted images so far" if each is not None else ""
        rows.append(("price", f"{cost.figure(price * hours)} for these, at {price:g} a {unit}-hour{paid}"))
    return rows


def _held_out(spec: RunSpec, images: int) -> list[tuple[str, str]]:
    """Of the training images, those that the generator is not trained on; ConfigError where they should be some and are
    none."""
    if spec.model.checkpoint is not None or not spec.pretrain.held_out:
        return []
    return [("of them held out", f"{spec.pretrain.holds_out(images):,}, by which the generator's training is chosen")]


def generator_time(spec: RunSpec, store: Store | None, images: int) -> list[tuple[str, str]]:
    """What training the closed-set generator and drawing by it take, counted from the recipe; without the training
    where it is done."""
    if spec.model.checkpoint is not None:
        return []
    rate = effort.per_second()
    parts = {name: work / rate for name, work in effort.training(spec, images).items()}
    rows = []
    if store is None or not store.exists(tree.MODEL_MARKER):
        each = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts.items())
        what = f"about {_duration(sum(parts.values()))} of one core of this machine ({each}), within a factor of two"
        rows.append(("training the generator", f"{what}; a fraction of it on a GPU"))
    sample = effort.sample(spec) / rate
    return [*rows, ("drawing", f"about {sample:.2g} s of one core for an image, likewise")]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{cost.figure(seconds / cost.HOUR_S)} hours"


def facts(spec: RunSpec, store: Store | None) -> list[tuple[str, str]]:
    """The plan in lines of (what, value)."""
    labels, names, origin = train_labels(spec, store)
    if not len(labels):
        raise DataError("split.train", "no training images", "give the train split a larger share")
    plan, g, size = Plan(spec, labels, names), spec.generate, spec.images.size
    found = made(store)
    measured = _bytes_each(found)
    bytes_each = measured or 3 * size * size * RAW_SHARE[g.format] + MEMBER_BYTES
    evaluations = g.count * max(1, round(g.num_inference_steps * g.strength)) * (2 if g.guidance_scale > 1 else 1)
    rows: list[tuple[str, str]] = [
        ("real training images", f"{len(labels):,} in {len(names)} classes, from {origin}"),
        *_held_out(spec, len(labels)),
        ("synthetic images", f"{g.count:,} = {g.count / len(labels):,.4g}x the real ones, {g.classes} classes"),
        ("shards", f"{plan.shards:,} of {g.shard_size:,}: {shard_name(spec.name, 0)}.tar ..."),
        (
            "U-Net evaluations",
            f"{evaluations:,} ({g.num_inference_steps} {g.scheduler} steps, guidance {g.guidance_scale:g})",
        ),
        (
            "disk",
            f"about {_bytes(bytes_each * g.count)} "
            f"({'measured on this run' if measured else 'a rough guess until the first shard'})",
        ),
        *generator_time(spec, store, len(labels)),
        *ahead(spec, store, found),
    ]
    if spec.model.checkpoint is not None and (Path(spec.model.checkpoint).expanduser() / INDEX).is_file():
        note = size_note(Path(spec.model.checkpoint).expanduser(), size)
        rows += [("image size", note)] if note else []
    if plan.shards > 100_000:
        rows.append(
            (
                "advice",
                f"{plan.shards:,} shards are many files: "
                f"generate.shard_size={max(1000, g.count // 100_000)} makes about 100,000 or fewer",
            )
        )
    rows.append(reading(spec, store, names))
    rows += [(f"example {i}", text) for i, text in enumerate(examples(spec, store, plan, names), 1)]
    return rows


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Say what a run would make and cost, with three example prompts; needs no GPU, no Ray and no model."""
    spec = load_recipe(recipe, set_)
    check(spec)
    model = spec.model
    store = begun(spec, output)
    if store is None and (model.checkpoint is None or hub.known(model.checkpoint, model.revision) is not None):
        learnt.check(spec)
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, value in facts(spec, store):
        table.add_row(what, value)
    Terminal(soft_wrap=True).print(table)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["plan", *sys.argv[1:]]))
