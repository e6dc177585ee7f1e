"""An equivalence study as a table, a page and a figure; several studies (closed set, open set) go into one figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from engine.study.publishedresults import EquivalenceStudy
from engine.study.studyresults import EquivalenceResult, Estimate

HEAD = ["base", "synthetic", "accuracy %", "worth in real images", "95 %"]
PRICES = ["base", "A", "marginal price", "doubling price", "rms, accuracy points", "verdict"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


def table(result: EquivalenceStudy) -> Table:
    """Every measured cell, in 80 columns for a terminal."""
    out = Table(title=_title(result), box=box.SIMPLE, title_justify="left", padding=(0, 1))
    for name in HEAD:
        out.add_column(name, justify="right", no_wrap=True)
    for row in _cells(result):
        out.add_row(*row)
    return out


def markdown(result: EquivalenceStudy) -> str:
    """The study as a page: advice, prices, cells, the real curve, and what the intervals cover."""
    real = [[f"{e['images']:,}", f"{100 * e['accuracy']:.2f}", _percents(e["interval"])] for e in result["real"]]
    parts = [
        f"# {_title(result)}",
        "\n".join(f"- {entry['text']}" for entry in result["advice"]),
        _lines(PRICES, _prices(result)),
        c2_words(result),
        _lines(HEAD, _cells(result)),
        _lines(["real images", "accuracy %", "95 %"], real),
        result["covers"],
        "n_syn / n_base = A (c2^(n_real+ / n_base) - 1); marginal price A ln c2; doubling "
        "price A (c2 - 1), in synthetic images.",
    ]
    return "\n\n".join(parts) + "\n"


def c2_words(result: EquivalenceStudy) -> str:
    """The common parameter and the paper's own form, or that there is none."""
    paper = result["paper_form"]
    if result["c2"] is None or paper is None:
        return "No base has a price, so there is no fit."
    errors = ", ".join(f"{100 * rms['accuracy']:.2f}" for rms in paper["rms"])
    return (
        f"c2 = {_number(result['c2']['value'])} {_ends(result['c2']['interval'])}, common to "
        "all bases. With A = c1^(n_base / k), as in "
        f"the paper: ln(c1) / k = {paper['ln_c1_over_k']:.3g}, c2 = {_number(paper['c2'])}, "
        f"rms {errors} accuracy points."
    )


def _title(result: EquivalenceStudy) -> str:
    kinds = {"generator": f"{result['generator']} generator", "real": "planted: further real images"}
    kind = kinds.get(result["synthetic"], "planted: random labels")
    return f"Equivalence: {result['name']}, {kind}, {result['repeats']} repeats x {result['classifiers']} classifiers"


def _cells(result: EquivalenceStudy) -> list[list[str]]:
    rows = []
    for base in result["bases"]:
        for amount in base["amounts"]:
            worth = f"{'>= ' if amount['at_least'] else ''}{amount['worth']:,.0f}"
            accuracy = f"{100 * amount['accuracy']:.2f}"
            rows.append(
                [f"{base['base']:,}", f"{amount['synthetic']:,}", accuracy, worth, _ends(amount["worth_interval"])]
            )
    return rows


def _prices(result: EquivalenceStudy) -> list[list[str]]:
    rows = []
    for base in result["bases"]:
        numbers = [_quantity(found) for found in (base["A"], base["marginal_price"], base["doubling_price"])]
        rms = "" if base["rms"] is None else f"{100 * base['rms']['accuracy']:.2f}"
        rows.append([f"{base['base']:,}", *numbers, rms, base["verdict"]])
    return rows


def _lines(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _quantity(found: Estimate | None) -> str:
    return "" if found is None else f"{_number(found['value'])} {_ends(found['interval'])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ends(interval: Sequence[float | None]) -> str:
    low, high = ("" if end is None else _number(end) for end in interval)
    return f"[{low or '-inf'}, {high or 'inf'}]"


def _percents(interval: Sequence[float | None]) -> str:
    return "" if None in interval else "[" + ", ".join(f"{100 * end:.2f}" for end in interval if end is not None) + "]"


def figure(results: Sequence[EquivalenceStudy | EquivalenceResult]) -> bytes:
    """An SVG of one study or several: left the real curve and the accuracies with synthetic images, right their worth
    and the fits."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "mimeo", "font.size": 9}):
        drawn = Figure((9.5, 4.0), layout="constrained")
        left, right = drawn.subplots(1, 2)
        for number, result in enumerate(results):
            _draw_curve(left, result, number)
            _draw_worth(right, result, number)
        left.set(
            xscale="log", xlabel="real images (held, for those with synthetic)", ylabel="accuracy on test images, %"
        )
        right.set(xscale="log", xlabel="synthetic images a base image", ylabel="worth, in real images a base image")
        right.axhline(0, color="#888888", linewidth=0.8)
        for axes in (left, right):
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.legend(fontsize=7)
        out = io.BytesIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_curve(axes: Any, result: EquivalenceStudy | EquivalenceResult, number: int) -> None:
    sizes = [entry["images"] for entry in result["real"]]
    means = 100 * np.array([entry["accuracy"] for entry in result["real"]])
    ends = 100 * np.array([[np.nan if e is None else e for e in entry["interval"]] for entry in result["real"]])
    label = "real images" if not number else f"real images ({result['name']})"
    axes.plot(sizes, means, color="#222222", linestyle=LINES[number % len(LINES)], marker=".", label=label)
    axes.fill_between(sizes, ends[:, 0], ends[:, 1], color="#222222", alpha=0.12, linewidth=0)
    for base, colour in zip(result["bases"], _colours(result), strict=True):
        for amount in base["amounts"]:
            size = 10 + 22 * np.log2(1 + amount["multiple"]) / 2
            axes.scatter(
                base["base"], 100 * amount["accuracy"], s=size, color=colour, marker=MARKERS[number % 4], alpha=0.8
            )


def _draw_worth(axes: Any, result: EquivalenceStudy | EquivalenceResult, number: int) -> None:
    from engine.study.equivalence.fit import gained

    for base, colour in zip(result["bases"], _colours(result), strict=True):
        n = base["base"]
        y = np.array([amount["multiple"] for amount in base["amounts"]], float)
        x = np.array([amount["worth"] / n for amount in base["amounts"]])
        ends = [[np.nan if e is None else e / n for e in amount["worth_interval"]] for amount in base["amounts"]]
        low, high = np.array(ends).T
        errors = np.stack([np.nan_to_num(x - low), np.nan_to_num(high - x)]).clip(0)
        shift = 1 + 0.03 * (number - 0.5)
        axes.errorbar(
            y * shift,
            x,
            errors,
            fmt=MARKERS[number % 4],
            color=colour,
            markersize=4,
            elinewidth=0.8,
            label=f"{n:,} real, {result['generator']}",
        )
        if base["verdict"] == "identifiable":
            assert result["c2"] is not None
            assert base["marginal_price"] is not None
            grid = np.geomspace(y[0], y[-1], 60)
            c, v = np.log(result["c2"]["value"]), 1 / base["marginal_price"]["value"]
            axes.plot(
                grid,
                gained(np.array(c), np.array(v), grid),
                color=colour,
                linestyle=LINES[number % len(LINES)],
                linewidth=1,
            )


def _colours(result: EquivalenceStudy | EquivalenceResult) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(len(result["bases"]))]
