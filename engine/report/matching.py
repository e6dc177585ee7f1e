"""The report's section on the fine-tune: what it was, both terms of its loss, errors by noise level, validation
samples."""

from __future__ import annotations

import io
import re
from typing import TypedDict

import numpy as np
from markupsafe import Markup
from PIL import Image

from engine import output
from engine.report import figures, gallery
from engine.report.facts import Facts
from engine.report.words import fine_tune
from engine.storage.store import Store
from engine.training.trainingresults import MatchResults

_STRIP = re.compile(rf"{output.MATCH_SAMPLES}-(\d+)\.png")
LEVELS = ("0 to 20 % noise", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 to 100 %")
MOST = 6


class Strip(TypedDict):
    """The validation samples of one step, as data URIs."""

    step: str
    tiles: list[str]


class Fine(TypedDict):
    """The section: what the fine-tune was, its figures, and its samples."""

    note: str
    figures: list[Markup]
    strips: list[Strip]


class Section(TypedDict):
    """The template's variable `matching`."""

    matching: Fine | None


def context(store: Store, facts: Facts) -> Section:
    """What the template needs: `matching` is None for a run without a fine-tune."""
    match, found = facts.spec.match, facts.match
    if match is None or found is None:
        return {"matching": None}
    shown = [
        figures.lines("levels", "squared error", found["phase_step"], dict(zip(LEVELS, _by_level(found), strict=True)))
    ]
    if match.mmd != "none":
        terms = {"denoising": found["denoising"], f"{match.mmd}, not weighted": found["mmd"]}
        shown.append(figures.lines("terms", "term of the loss", found["phase_step"], terms))
    note = (
        f"{fine_tune(match)}, on the training split alone. Errors are those of the predicted noise or velocity, not "
        "weighted, as means over twentieths of the training."
    )
    return {"matching": {"note": note, "figures": shown, "strips": _strips(store)}}


def _by_level(found: MatchResults) -> list[list[float | None]]:
    return [list(values) for values in zip(*found["levels"], strict=True)]


def _strips(store: Store) -> list[Strip]:
    """Validation samples of the newest steps, the same prompts and seeds in each."""
    names = sorted(entry.name for entry in store.list(f"{output.MATCH_SAMPLES}-"))
    out: list[Strip] = []
    for name in names[-MOST:]:
        found = _STRIP.fullmatch(name)
        if found is None:
            continue
        strip = np.asarray(Image.open(io.BytesIO(store.read(name))).convert("RGB"))
        side = strip.shape[0]
        tiles = [strip[:, left : left + side] for left in range(0, strip.shape[1], side)]
        out.append({"step": f"step {int(found[1]):,}", "tiles": [gallery.data_uri(np.array(tile)) for tile in tiles]})
    return out
