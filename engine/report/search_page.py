"""A ratio search in words, a table and a figure: the curve with intervals, the choice, and the one test reading."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from engine.statistics.nested import NO_VERDICT
from engine.statistics.published import Compared
from engine.study.studyresults import PublishedReading, SearchPoint, SearchResult

HEAD = ["setting", "synthetic images", "accuracy %", "95 % interval", "gain", "95 % interval", "p (Holm)", "finding"]
REAL, LINES = "#8a8f98", ("#2f6fde", "#d9822b", "#3a9d5d", "#b0489b", "#7a6ff0", "#4aa3b5")
INK, PALE = "#22252a", "#d8dbe0"


def rows(result: SearchResult) -> list[list[str]]:
    """A row a setting, as text under HEAD; gains are in percentage points over ratio 0."""
    return [_row(point) for point in result["points"]]


def table(result: SearchResult) -> Table:
    """The most of it, for a terminal."""
    out = Table(title=_title(result), box=box.SIMPLE, title_justify="left", padding=(0, 1), pad_edge=False)
    for name in ("setting", "acc. %", "95 % CI", "gain", "95 % CI", "p", "finding"):
        out.add_column(name, justify="left" if name in ("setting", "finding") else "right", no_wrap=True)
    for setting, _, *others, finding in rows(result):
        out.add_row(setting, *others, finding.removesuffix(" found"))
    return out


def lines(result: SearchResult) -> list[str]:
    """What was found, a sentence each: the choice, whether it beats ratio 0, the plainer one, the test reading."""
    points = {point["key"]: point for point in result["points"]}
    best, plain = points[result["chosen"]], points[result["one_standard_error"]]
    compared = sum(point["whole"] for point in result["points"]) - 1
    found = [f"best on validation: {best['label']}, {_percent(best['mean'])} % {_interval(best['interval'])}"]
    if len(best["units"]) == 1:
        judges = best.get("judges")
        spread = "" if judges is None else f"; its classifiers differ by {_percent(judges)} points (standard deviation)"
        found.append(f"{NO_VERDICT}{spread}")
    elif best["gain"] is None:
        found.append("no setting with synthetic images did better than the real ones alone")
    else:
        beats = "beyond noise" if result["beats_zero"] else "which noise can explain"
        found.append(
            f"its gain over the real images alone: {_gain(best['gain'])}, p (Holm) {_p(best['gain'])}: {beats}"
        )
        found.append(f"it is the best of {compared} settings on the same images, so this gain is optimistic")
    found.append(f"smallest ratio within one standard error of the best: {plain['label']}, {_percent(plain['mean'])} %")
    return [*found, *_test(result["test"])]


def markdown(result: SearchResult) -> str:
    """The same as a page, beside results/search.png."""
    grid = ["| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *rows(result)]]
    said = "\n".join(f"- {line}" for line in lines(result))
    parts = [
        f"# {_title(result)}",
        "\n".join(grid),
        said,
        "![validation accuracy by ratio](search.png)",
        result["covers"],
    ]
    return "\n\n".join(parts) + "\n"


def figure(result: SearchResult) -> bytes:
    """Validation accuracy against the ratio as a PNG: a line for each choice of other settings, bars are 95 %
    intervals.

    Of many choices the six with the best means are drawn. The same result gives the same bytes with the same
    matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    drawing = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(drawing)
    _draw(drawing.subplots(), result)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, result: SearchResult) -> None:
    points = [point for point in result["points"] if point["whole"]]
    ratios = sorted({point["ratio"] for point in points})
    zero, best = points[0], next(point for point in points if point["key"] == result["chosen"])
    axes.axhline(100 * zero["mean"], color=REAL, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    chosen = _series(points)
    for colour, (name, series) in zip(LINES, chosen, strict=False):
        whole = [zero, *series]
        places = [ratios.index(point["ratio"]) for point in whole]
        axes.plot(places, [100 * point["mean"] for point in whole], "o-", color=colour, label=name, markersize=5)
        for place, point in zip(places, whole, strict=True):
            low, high = point["interval"]
            if low is not None and high is not None:
                axes.plot([place, place], [100 * low, 100 * high], color=colour, linewidth=5, alpha=0.25, zorder=1)
    place = ratios.index(best["ratio"])
    axes.plot([place], [100 * best["mean"]], "o", markersize=12, fillstyle="none", color=INK, label="chosen")
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set_xlabel("synthetic images a real one")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(axis="y", color=PALE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chosen) > 1:
        axes.legend(frameon=False, fontsize=8)


def _series(points: Sequence[SearchPoint]) -> list[tuple[str, list[SearchPoint]]]:
    """Settings above ratio 0 by their other values, the best first."""
    found: dict[str, list[SearchPoint]] = {}
    for point in points:
        if point["ratio"]:
            found.setdefault(point["label"].partition(", ")[2], []).append(point)
    return sorted(found.items(), key=lambda item: -max(point["mean"] for point in item[1]))


def _row(point: SearchPoint) -> list[str]:
    head = [point["label"], f"{point['synthetic_images']:,}", _percent(point["mean"])]
    if not point["whole"]:
        classifiers = sum(len(row) for row in point["accuracies"])
        return [*head, "", "", "", "", f"stopped after {classifiers}"]
    gain = point["gain"]
    if gain is None:
        return [*head, _interval(point["interval"]), "", "", "", "real alone"]
    found = [f"{100 * gain['difference']:+.1f}", _signed(gain["interval"]), _p(gain), gain["finding"]]
    return [*head, _interval(point["interval"]), *found]


def _test(test: PublishedReading | None) -> list[str]:
    if test is None:
        return ["there is no test split to read"]
    label = test["choice"]["label"]
    read = (
        f"test split, read once: {label} {_percent(test['chosen']['mean'])} % {_interval(test['chosen']['interval'])}, "
        f"real alone {_percent(test['zero']['mean'])} % {_interval(test['zero']['interval'])}"
    )
    if test["gain"] is not None:
        gain = test["gain"]
        read += f", gain {_gain(gain)}, over seeds and images {_signed(gain.get('population', [None, None]))}"
        read += f", p {_p(gain)}: {gain['finding']}"
    if test["of_this_choice"]:
        return [read]
    return [
        read,
        f"that reading is of {label}, chosen earlier; it is not repeated for the new choice: use another output",
    ]


def _title(result: SearchResult) -> str:
    return (
        f"Search: {result['name']}, {result['training_images']:,} real images, {result['generator_seeds']} generator x "
        f"{result['judge_seeds']} classifier seeds"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _signed(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "" if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _gain(gain: Compared) -> str:
    return f"{100 * gain['difference']:+.1f} points {_signed(gain['interval'])}".rstrip()


def _p(gain: Compared) -> str:
    """Holm-adjusted where it is one of several."""
    p = gain["p_adjusted"]
    return "not known" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
