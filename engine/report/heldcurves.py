"""The report's part on held-out images: how far the generator knows its training images better than others, in curves
and words."""

from __future__ import annotations

from typing import TypedDict

from markupsafe import Markup

from engine.report import figures
from engine.report.facts import PRETRAIN
from engine.storage import documents
from engine.storage.store import Store
from engine.training.trainingresults import HeldOutCurve, HeldOutError, PretrainResults

TITLES = {"vae": "VAE", "unet": "U-Net", "dit": "DiT", "pixel": "U-Net in pixels"}
LEVEL = 0.01  # of an error: what changes by less is level


class Part(TypedDict):
    """One model: its curve, if there is one, and what held-out images say."""

    title: str
    words: str
    figure: Markup | None


class Section(TypedDict):
    """The template's variable `held_out`."""

    held_out: list[Part]


def context(store: Store) -> Section:
    """What the template needs: `held_out`, a list, is empty where no image was held out."""
    found = documents.find(store, PRETRAIN, PretrainResults)
    parts = {} if found is None else found.get("held_out", {})
    return {"held_out": [_part(name, part) for name, part in parts.items()]}


def _part(name: str, found: HeldOutCurve | HeldOutError) -> Part:
    """Of a denoiser (HeldOutCurve) or a VAE (HeldOutError)."""
    title = TITLES.get(name, name)
    if "step" in found:
        series = {"training images": found["train"], "held-out images": found["held"]}
        figure = figures.lines(f"held-{name}", "denoising loss", found["step"], series)
        return {"title": title, "words": denoiser(found), "figure": figure}
    return {"title": title, "words": autoencoder(found), "figure": None}


def denoiser(found: HeldOutCurve) -> str:
    """Whether more training would help, or was too much, in one sentence; and what was chosen."""
    steps, train, held = found["step"], found["train"], found["held"]
    best = min(range(len(held)), key=held.__getitem__)
    chosen = (
        f"The weights of step {found['chosen_step']:,} are used, averaged over a relative "
        f"length of {found['chosen_length']:g}."
    )
    if held[-1] > (1 + LEVEL) * held[best]:
        falls = ", while its training error falls" if train[-1] < (1 - LEVEL) * train[best] else ""
        risen = f"its held-out error rises from {held[best]:.3g} to {held[-1]:.3g}"
        return f"Over-fits from step {steps[best]:,} on: {risen}{falls}. {chosen}"
    if len(held) > 1 and held[-1] < (1 - LEVEL) * held[-2]:
        return (
            f"Its held-out error is still falling at the end ({held[-2]:.3g} to {held[-1]:.3g}): train longer. {chosen}"
        )
    return f"Its held-out error is level at the end ({held[-1]:.3g}): longer training would bring little. {chosen}"


def autoencoder(found: HeldOutError) -> str:
    """How far off it rebuilds both, in one sentence."""
    train, held = found["train"], found["held"]
    both = (
        f"It rebuilds training images to within {train:.1f} of 255 and held-out ones to "
        f"within {held:.1f} (root mean square)"
    )
    if held > 1.5 * train:
        return f"{both}: it over-fits, knowing its training images by heart rather than images of their kind."
    return f"{both}."
