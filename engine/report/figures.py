"""The report's figures: matplotlib drawings as deterministic SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from engine.evaluation.controls import WORDS as CONTROLS

MAX_POINTS = 400  # of a curve
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# Matplotlib draws with these stand-ins; each becomes the page's CSS variable of that name.
PALETTE = {
    "ink": "#000001",
    "muted": "#000002",
    "line": "#000003",
    "card": "#000004",
    "real": "#000005",
    "synthetic": "#000006",
    "mixed": "#000007",
}
OF_BOTH, OF_SYNTHETIC = ("mixed", "augmentation", "few_shot_augmentation"), ("synthetic", "replacement")
_VARIABLES = {value: f"var(--{name})" for name, value in PALETTE.items()}
_DROPPED_STYLES = ("font", "font-family", "font-style", "font-weight", "font-stretch", "font-variant")
_FONT_SIZE = re.compile(r"([\d.]+)px")
_WIDTH = 3.9  # inches: text is about 10 px high on a phone of 360 px, 13 px beside a table on a desktop


def hue(arm: str) -> str:
    """`mixed`, `synthetic`, `muted` or `real`: the colour of an arm, by what its key (or kind) says that it trains
    on."""
    if arm.startswith(tuple(CONTROLS)):
        return "muted"
    if arm.startswith(OF_BOTH):
        return "mixed"
    return "synthetic" if arm.startswith(OF_SYNTHETIC) else "real"


@dataclass(frozen=True)
class Bar:
    """One arm of the accuracy figure: mean and interval in per cent, and the value of each seed."""

    label: str
    kind: str
    mean: float
    interval: tuple[float | None, ...]
    values: tuple[float, ...]


def accuracy(bars: Sequence[Bar], metric: str = "accuracy") -> Markup:
    """Accuracy, or what else `metric` names, of each arm: mean, 95 % interval and every seed; the dashed line is real
    data's mean."""
    from matplotlib import ticker

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, bar in enumerate(bars):
            colour = PALETTE[bar.kind]
            low, high = bar.interval
            if low is not None and high is not None:
                axes.barh(row, high - low, left=low, height=0.46, color=colour, alpha=0.28, linewidth=0)
            axes.plot(bar.values, [row] * len(bar.values), "|", color=colour, markersize=9, markeredgewidth=1.2)
            axes.plot([bar.mean], [row], "o", color=colour, markersize=8)
            place = axes.get_yaxis_transform()
            axes.text(1.02, row, f"{bar.mean:.1f}", transform=place, va="center", color=PALETTE["ink"], fontsize=9.5)
        for bar in bars:
            if bar.kind == "real":
                axes.axvline(bar.mean, color=PALETTE["real"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], parse_math=False)
        axes.set_ylim(len(bars) - 0.45, -0.65)
        axes.set_xlim(*_limits(bars))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel(f"{metric} on real test images, %")
        axes.grid(axis="x", color=PALETTE["line"], linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])

    description = "; ".join(f"{bar.label}: {bar.mean:.1f} %" for bar in bars)
    return _svg(
        draw,
        (_WIDTH, 0.7 + 0.4 * len(bars)),
        "accuracy",
        f"{metric[0].upper()}{metric[1:]} by training set. {description}.",
    )


def _limits(bars: Sequence[Bar]) -> tuple[float, float]:
    """Per cent: all that is drawn, with a margin, inside 0 to 100; a wide interval of few seeds may be cut at the
    frame."""
    values = [v for bar in bars for v in bar.values]
    span = max(max(values) - min(values), 2.0)
    ends = [e for bar in bars for e in bar.interval if e is not None]
    low = max(min([*values, *ends]), min(values) - 2 * span)
    high = min(max([*values, *ends]), max(values) + 2 * span)
    margin = 0.12 * max(high - low, span)
    return max(0.0, low - margin), min(100.0 + margin, high + margin)


def curve(name: str, label: str, steps: Sequence[float], losses: Sequence[float]) -> Markup:
    """A training loss over steps on a logarithmic scale where it is positive; pale: as noted, dark: running mean."""
    import numpy as np
    from matplotlib import ticker

    every = -(-len(losses) // MAX_POINTS)
    steps, values = steps[::every], np.asarray(losses, dtype=float)[::every]
    window = max(1, len(values) // 25)
    smooth = np.convolve(values, np.ones(window) / window, "valid")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(steps, values, color=PALETTE["synthetic"], alpha=0.35, linewidth=1)
        axes.plot(steps[window - 1 :], smooth, color=PALETTE["synthetic"], linewidth=2)
        if (values > 0).all() and values.max() > 5 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=6))
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.grid(color=PALETTE["line"], linewidth=0.7)

    end = f"from {values[0]:.3g} to {smooth[-1]:.3g} over {steps[-1]:,} steps"
    return _svg(draw, (3.4, 2.4), name, f"Training loss of the {name}, {end}.")


def lines(name: str, label: str, steps: Sequence[float], series: Mapping[str, Sequence[float | None]]) -> Markup:
    """Several quantities over optimiser steps, told apart by shade and label; None leaves a gap."""
    shades = [1.0 - 0.75 * k / max(1, len(series) - 1) for k in range(len(series))]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for (title, values), shade in zip(series.items(), shades, strict=True):
            known = [float("nan") if value is None else value for value in values]
            axes.plot(steps, known, color=PALETTE["synthetic"], alpha=shade, linewidth=1.6, label=title, marker=".")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.grid(color=PALETTE["line"], linewidth=0.7)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return _svg(draw, (4.2, 3.0), name, f"{label} over optimiser steps: {', '.join(series)}.")


def groups(sets: Mapping[str, Sequence[Bar]]) -> Markup:
    """Accuracy of each arm on each set: dots with 95 % intervals, one band of rows a set."""
    rows = [(label, bar) for label, bars in sets.items() for bar in bars]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, (_, bar) in enumerate(rows):
            low, high = bar.interval
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=PALETTE[bar.kind], linewidth=4, alpha=0.4)
            axes.plot([bar.mean], [row], "o", color=PALETTE[bar.kind], markersize=6)
        edge = 0
        for label, bars in sets.items():
            axes.axhline(edge - 0.5, color=PALETTE["line"], linewidth=0.7)
            place = axes.get_yaxis_transform()
            axes.text(1.02, edge, label, transform=place, va="center", color=PALETTE["ink"], parse_math=False)
            edge += len(bars)
        axes.set_yticks(range(len(rows)), [bar.label for _, bar in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="x", color=PALETTE["line"], linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    told = "; ".join(f"{label}, {bar.label}: {bar.mean:.1f} %" for label, bar in rows)
    return _svg(draw, (5.4, 0.8 + 0.24 * len(rows)), "sets", f"Accuracy by set and training set. {told}.")


def aucs(measures: Mapping[str, Sequence[tuple[str, float, tuple[float | None, ...]]]]) -> Markup:
    """AUC with its interval for each measure and pair (label, value, interval); the dashed line is one half: no
    difference."""
    rows = [
        (f"{label}: {pair}", value, interval) for label, pairs in measures.items() for pair, value, interval in pairs
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, (label, value, (low, high)) in enumerate(rows):
            colour = PALETTE["synthetic" if "synthetic" in label else "real"]
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=4, alpha=0.4)
            axes.plot([value], [row], "o", color=colour, markersize=6)
        axes.axvline(0.5, color=PALETTE["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("cross-validated AUC")
        axes.grid(axis="x", color=PALETTE["line"], linewidth=0.7)
        axes.tick_params(axis="y", length=0)

    told = "; ".join(f"{label}: {value:.3f}" for label, value, _ in rows)
    return _svg(draw, (5.4, 0.8 + 0.3 * len(rows)), "gap", f"How well two sets of images can be told apart. {told}.")


def _svg(draw: Callable[[Any], None], size: tuple[float, float], name: str, description: str) -> Markup:
    """Draw on a fresh figure and return it as SVG for a page: no styles, no scripts, ids that begin with `name`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "text.color": PALETTE["ink"],
        "axes.edgecolor": PALETTE["muted"],
        "axes.labelcolor": PALETTE["muted"],
        "xtick.color": PALETTE["muted"],
        "ytick.color": PALETTE["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "figure.dpi": 100,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(page_svg(buffer.getvalue(), name, description))


def page_svg(data: bytes, prefix: str, description: str) -> str:
    """Rewrite a matplotlib SVG for a page under a strict policy: style attributes become presentation attributes,
    stand-in colours become CSS variables, ids get a prefix, metadata and style sheets go; `description` is read to the
    blind."""
    root = ElementTree.fromstring(data)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _rewrite(element, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": description, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element, prefix: str) -> None:
    attributes = element.attrib
    for declaration in attributes.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (size := _FONT_SIZE.search(value)):
            attributes["font-size"] = size[1]
        elif key and key not in _DROPPED_STYLES:
            attributes[key] = value
    for key, value in list(attributes.items()):
        if key == "id":
            attributes[key] = f"{prefix}-{value}"
        elif key == f"{{{XLINK}}}href":
            del attributes[key]
            attributes["href"] = value.replace("#", f"#{prefix}-", 1)
        else:
            attributes[key] = _VARIABLES.get(value.lower(), value).replace("url(#", f"url(#{prefix}-")
