"""Sides measured in turn: pairs, their medians and noise, the verdict on a target, the table and the file of
results."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from scipy.stats import quantile_test

from benchmarks.machine import machine

FOLDER = Path(__file__).parent / "results"
Cost = TypeVar("Cost")
Row = dict[str, Any]


def alternate(sides: Mapping[str, Callable[[], Cost]], pairs: int, warm: int = 1) -> dict[str, list[Cost]]:
    """What each side returns, `pairs` times: all sides one after another, in turning order, after `warm` rounds that do
    not count."""
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    for number in range(-warm, pairs):
        for side in sides if number % 2 else reversed(sides):
            cost = sides[side]()
            if number >= 0:
                costs[side].append(cost)
    return costs


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over pairs of the first over the second."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def spread(values: Sequence[float]) -> float:
    """How far a side differs from itself one pair later, as a share: the noise of a single pair; infinite for fewer
    than two."""
    if len(values) < 2:
        return math.inf
    return statistics.median(abs(b / a - 1) for a, b in itertools.pairwise(values))


def interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of `ratio`, by order statistics: no shape of the noise is assumed. NaN with fewer than six
    pairs."""
    found = quantile_test([a / b for a, b in zip(above, below, strict=True)]).confidence_interval()
    return float(found.low), float(found.high)


def verdict(value: float, noise: float, target: float, *, at_most: bool = False) -> str:
    """Whether the target is met or missed by more than the noise, which has the unit of the value; being equal to it is
    enough."""
    if abs(value - target) < noise:
        return "too noisy to judge"
    return "met" if (value <= target if at_most else value >= target) else "missed"


def judged(case: str, what: str, value: float, noise: float, target: float | None, **more: Any) -> Row:
    """A row of results: `value` of `what` in a case, the share of it that is noise, and the verdict where there is a
    target.

    `at_most=True` in `more` says that less is better.
    """
    row: Row = {"case": case, "what": what, "value": value, "noise": None if math.isinf(noise) else noise}
    row |= {"target": target, "at_most": False, "verdict": "no target", **more}
    if target is not None:
        row["verdict"] = verdict(value, noise * abs(value), target, at_most=row["at_most"])
    return row


def table(rows: Sequence[Row]) -> str:
    """Judged rows as text."""
    lines = [f"{'case':22} {'what':44} {'value':>10} {'target':>9} {'noise':>6}  verdict"]
    for row in rows:
        bound = "" if row["target"] is None else f"{'<=' if row['at_most'] else '>='} {number(row['target'])}"
        noise = "" if row["noise"] is None else f"{row['noise']:.3f}"
        lines.append(
            f"{row['case']:22} {row['what']:44} {number(row['value']):>10} {bound:>9} {noise:>6}  {row['verdict']}"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def parser(doc: str | None, pairs: int | None = None, cases: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The options that benchmarks share: `--quick`, `--results`, and where there is something to choose `--pairs`,
    `--case`."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if pairs is not None:
        made.add_argument("--pairs", type=int, default=pairs, help="how often each side is measured")
    if named := tuple(cases):
        made.add_argument(
            "--case", choices=named, action="append", help="measured alone, or with others that are named"
        )
    made.add_argument(
        "--quick", action="store_true", help="sizes of a smoke run: its figures mean nothing, none is kept"
    )
    made.add_argument("--results", type=Path, help="where to write the JSON, in place of benchmarks/results")
    return made


def finish(
    name: str, rows: Sequence[Row], arguments: argparse.Namespace, facts: Row | None = None, text: str | None = None
) -> NoReturn:
    """Print the table, write the JSON (a quick run only where `--results` says so), exit with 1 where a target was
    missed.

    `facts`: what `machine` said inside a session; asked now where it is None. `text`: what is printed of rows that are
    not of
    `judged`. A quick run exits with 0: it judges nothing.
    """
    print(table(rows) if text is None else text)
    path = arguments.results or (None if arguments.quick else FOLDER / f"{name}.json")
    if path is not None:
        keep(path, {"machine": facts or machine(name), "results": list(rows)})
    sys.exit(not arguments.quick and any("missed" in row.values() for row in rows))


def keep(path: Path, found: Row) -> None:
    """Write a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
