"""Writes the report: one self-contained HTML page, with the gallery picture and the data set card beside it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypedDict

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from engine import output
from engine.errors import DataError
from engine.evaluation.evaluationresults import JudgedArm
from engine.evaluation.run_summary import arm_images, arm_label, best_control, bracket, copied, percent
from engine.images.catalog import NEAR_DUPLICATES, QUARANTINED
from engine.report import card, evaluation_page, figures, gallery, heldcurves, likeness, matching
from engine.report.advice import advise
from engine.report.captions_page import Review, review
from engine.report.facts import Facts, gather, without_folders
from engine.report.gallery import Row
from engine.report.words import headline, run_facts, subtitle
from engine.shards.manifest import QUARANTINE
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training.measures import WORDS as METRICS

REPORT, GALLERY, CARD = output.REPORT, output.GALLERY, output.CARD
MAX_CLASSES = 40
TOP_REASONS = 12
MIXED = {
    "equal": "mixed batches are half real, half synthetic",
    "proportional": "mixed batches are drawn from the union of real and synthetic images",
}


class Gallery(TypedDict):
    """The template's variables for the gallery."""

    gallery: list[Row]
    gallery_note: str
    gallery_fault: str
    pixelated: bool


class ArmRow(TypedDict):
    """An arm in the table of accuracies."""

    kind: str
    copies: str
    control: str
    more: list[str]
    label: str
    images: str
    accuracy: str
    interval: str
    ratio: str
    ratio_interval: str
    test_error: str


class Accuracy(TypedDict):
    """The template's variables for accuracies; empty where nothing was judged."""

    arms: list[ArmRow]
    tiles: list[dict[str, str]]
    accuracy_figure: Markup | str
    recipe: str
    level: str
    metric: str
    more: list[str]


class ClassCell(TypedDict):
    """The share of one class that an arm gets right."""

    kind: str
    value: float | None
    width: str
    text: str


class ClassRow(TypedDict):
    """A class with its test images, each arm's cell, and what it is most often taken for."""

    name: str
    n: str
    cells: list[ClassCell]
    taken: dict[str, str] | None


class Classes(TypedDict):
    """The template's variables for the table of classes."""

    classes: list[ClassRow]
    class_columns: list[str]
    classes_note: str


class CurveShown(TypedDict):
    """One training's losses."""

    title: str
    detail: str
    figure: Markup


class Curves(TypedDict):
    """The template's variables for losses."""

    curves: list[CurveShown]
    curves_note: str


class Quarantined(TypedDict):
    """What was set aside, by reason."""

    title: str
    unit: str
    note: str
    rows: list[tuple[str, str]]


def write(store: Store, spec: RunSpec) -> None:
    """Write results/gallery.png, README.md and, last, report.html; what the run has not made is left out.

    Raises DataError where the catalog or the synthetic set is not finished. Equal runs give equal bytes.
    """
    facts = gather(store, spec)
    rows, fault = _gallery(store, facts)
    store.replace(GALLERY, gallery.picture(rows))
    store.replace(CARD, card.text(facts).encode())
    sections: dict[str, object] = {
        **matching.context(store, facts),
        **evaluation_page.context(store),
        **likeness.context(store, facts),
    }
    sections |= heldcurves.context(store)
    store.replace(REPORT, render(facts, rows, fault, review(store, facts), sections).encode())


def render(
    facts: Facts,
    rows: list[Row],
    fault: str = "",
    captions: Review | None = None,
    sections: Mapping[str, object] | None = None,
) -> str:
    """The page as text; `rows` are the gallery's, `fault` says why images are missing from it, `sections` are other
    modules' parts."""
    environment = Environment(
        loader=PackageLoader("engine", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("style.css.j2").render()
    return environment.get_template("report.html.j2").render(
        facts=facts,
        style=Markup(style),
        policy=_policy(style),
        subtitle=subtitle(facts),
        headline=headline(facts),
        advices=advise(facts),
        run_facts=run_facts(facts),
        costs=facts.cost.lines(facts.spec.resources.price_per_hour),
        recipe_text=yaml.safe_dump(without_folders(facts.spec), sort_keys=False, allow_unicode=True),
        quarantines=_quarantines(facts),
        captions=captions,
        **_accuracy(facts),
        **_gallery_context(facts, rows, fault),
        **_classes(facts),
        **_curves(facts),
        **{"matching": None, "evaluation": None, "likeness": None, "held_out": [], **(sections or {})},
    )


def _policy(style: str) -> str:
    """Nothing may load, run or be sent; the one style sheet is named by its hash."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _gallery(store: Store, facts: Facts) -> tuple[list[Row], str]:
    """The gallery's rows; without images, and why, where the sources or shards can no longer be read."""
    labels = _shown_classes(facts, gallery.CLASSES)
    try:
        return gallery.collect(facts.spec, store, facts.catalog, labels), ""
    except DataError as error:
        return [Row(label, facts.catalog.class_names[label]) for label in labels], str(error)


def _shown_classes(facts: Facts, most: int) -> list[int]:
    """All classes, or those with the lowest synthetic-only accuracy (the first ones where none was judged)."""
    count = len(facts.catalog.class_names)
    arm = facts.arm("synthetic")
    if count <= most or arm is None:
        return list(range(min(count, most)))
    known = [(value, label) for label, value in enumerate(arm["per_class"]) if value is not None]
    return sorted(label for _, label in sorted(known)[:most])


def _which(facts: Facts, shown: int) -> str:
    count = len(facts.catalog.class_names)
    if shown >= count:
        return ""
    kind = "with the lowest synthetic-only accuracy" if facts.arm("synthetic") else "that come first"
    return f" Shown are the {shown} of {count:,} classes {kind}."


def _gallery_context(facts: Facts, rows: list[Row], fault: str) -> Gallery:
    note = (
        "The first real training images and the first synthetic images of each class, by index: nothing was picked by "
        "looks. Point at an image for its caption or prompt."
    )
    pixelated = facts.spec.images.size < gallery.SMALL
    return {
        "gallery": rows,
        "gallery_note": note + _which(facts, len(rows)),
        "gallery_fault": fault,
        "pixelated": pixelated,
    }


def _accuracy(facts: Facts) -> Accuracy:
    arms = facts.arms()
    if not arms or facts.judge is None:
        return {"arms": [], "tiles": [], "accuracy_figure": "", "recipe": "", "level": "", "metric": "", "more": []}
    judge = facts.judge
    bars = [
        figures.Bar(
            label=arm_label(arm),
            kind=figures.hue(arm["kind"]),
            mean=100 * arm["mean"],
            interval=tuple(None if bound is None else 100 * bound for bound in arm["interval"]),
            values=tuple(100 * value for value in arm.get("values", arm["accuracies"])),
        )
        for arm in arms
    ]
    told = judge["recipe"]
    recipe = (
        f"Every judge is the same CNN ({judge['parameters']:,} weights) and takes {told['steps']:,} optimiser steps of "
        f"{told['batch']} images, whatever the data; {MIXED[str(told.get('mixing', 'equal'))]}."
    )
    if judge["codec"]["lossy"]:
        recipe += f" Real training images went through the same {judge['codec']['format']} codec as the synthetic ones."
    more = [name for name in METRICS if name != facts.metric and all(name in arm.get("measures", {}) for arm in arms)]
    return {
        "arms": [_arm_row(arm, more) for arm in arms],
        "metric": METRICS[facts.metric],
        "more": [METRICS[name] for name in more],
        "tiles": [
            _tile(arm, METRICS[facts.metric]) for kind in ("real", "synthetic", "mixed") if (arm := facts.arm(kind))
        ],
        "accuracy_figure": figures.accuracy(bars, METRICS[facts.metric]),
        "recipe": recipe,
        "level": percent(judge["level"], 0),
    }


def _arm_row(arm: JudgedArm, more: list[str]) -> ArmRow:
    return {
        "kind": figures.hue(arm["kind"]),
        "copies": copied(arm),
        "control": best_control(arm),
        "more": [f"{arm['measures'][name]['mean'] * 100:.1f}" for name in more],
        "label": arm_label(arm),
        "images": arm_images(arm),
        "accuracy": f"{arm['mean'] * 100:.1f}",
        "interval": bracket(arm["interval"], 100),
        "ratio": "" if arm["ratio"] is None else f"{arm['ratio']:.3f}",
        "ratio_interval": bracket(arm["ratio_interval"], 1, 3),
        "test_error": f"{arm['test_error'] * 100:.1f}",
    }


def _tile(arm: JudgedArm, metric: str) -> dict[str, str]:
    interval = bracket(arm["interval"], 100).strip() or "one seed, no interval"
    return {
        "kind": arm["kind"],
        "label": f"{arm_label(arm)}: {arm_images(arm)} images",
        "value": percent(arm["mean"]),
        "detail": f"{metric} {interval}",
    }


def _classes(facts: Facts) -> Classes:
    arms = [arm for kind in ("real", "synthetic", "mixed") if (arm := facts.arm(kind))]
    if facts.judge is None or not arms:
        return {"classes": [], "class_columns": [], "classes_note": ""}
    names, sizes = facts.catalog.class_names, facts.judge["test_per_class"]
    shown = _shown_classes(facts, MAX_CLASSES)
    compared = facts.arm("synthetic") or arms[0]
    note = (
        "Share of each class's test images that is right, mean over seeds; mistakes are "
        f"those of {arm_label(compared)}."
    )
    return {
        "classes": [
            {
                "name": names[label],
                "n": f"{sizes[label]:,}",
                "cells": [_class_cell(arm["kind"], arm["per_class"][label]) for arm in arms],
                "taken": _taken(compared["confusions"], label, names),
            }
            for label in shown
        ],
        "class_columns": [arm_label(arm) for arm in arms],
        "classes_note": note + _which(facts, len(shown)),
    }


def _class_cell(kind: str, value: float | None) -> ClassCell:
    return {
        "kind": kind,
        "value": value,
        "width": f"{100 * (value or 0):.1f}",
        "text": "" if value is None else percent(value),
    }


def _taken(confusions: Iterable[tuple[int, int, float]], label: int, names: tuple[str, ...]) -> dict[str, str] | None:
    for true, predicted, count in confusions:
        if true == label:
            return {"name": names[int(predicted)], "count": f"{count:.1f} a judge"}
    return None


def _curves(facts: Facts) -> Curves:
    titles = {
        "clip": "CLIP",
        "vae": "VAE",
        "unet": "U-Net",
        "dit": "DiT",
        "pixel": "U-Net in pixels",
        "match": "Matching fine-tune",
    }
    curves: list[CurveShown] = [
        {
            "title": titles.get(name, name),
            "detail": f"{stage['steps']:,} steps, {stage['seconds']:,.0f} s",
            "figure": figures.curve(name, "loss", stage["step"], stage["loss"]),
        }
        for name, stage in facts.curves.items()
        if len(stage["loss"]) > 1
    ]
    note = "Trained on the training split alone. Pale: losses as noted; dark: their running mean."
    return {"curves": curves, "curves_note": note}


def _quarantines(facts: Facts) -> list[Quarantined]:
    sealed = facts.manifest.seal
    good = facts.catalog.table.num_rows
    samples = f"Given up after redraws: {sealed.quarantined:,} of {sealed.facts.count:,} planned ({QUARANTINE})."
    images = f"Set aside: {facts.bad_images.total():,}; in the catalog: {good:,} ({QUARANTINED})."
    if facts.catalog.near_duplicates:
        images += f" {facts.catalog.near_duplicates.words().capitalize()} ({NEAR_DUPLICATES})."
    return [
        {"title": "Synthetic samples", "unit": "samples", "note": samples, "rows": _reasons(facts.quarantined)},
        {"title": "Real images", "unit": "images", "note": images, "rows": _reasons(facts.bad_images)},
    ]


def _reasons(counts: Counter[str]) -> list[tuple[str, str]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, f"{count:,}") for reason, count in ordered[:TOP_REASONS]]
