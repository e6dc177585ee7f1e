"""An ablation, or deliberate generation against a static plan, in words and tables: every arm with its interval, what was found, and how many seeds would settle the rest."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

MANY = "more than 16,384"


def rows(result: dict[str, Any], kind: str) -> list[list[str]]:
    """Arm, accuracy, interval, difference to the reference, its interval, adjusted p, finding, seeds needed; as text."""
    found = result["training_sets"][kind]
    compared = {entry["arm"]: entry for entry in found["comparisons"]}
    return [_row(arm, own, compared.get(arm)) for arm, own in found["arms"].items()]


HEAD = ["arm", "accuracy %", "95 % interval", "difference", "95 % interval", "p (Holm)", "finding", "seeds needed"]


def table(result: dict[str, Any], kind: str) -> Table:
    """The most of it, in 80 columns for a terminal."""
    out = Table(title=_title(result, kind), box=box.SIMPLE, title_justify="left", caption=_real(result), padding=(0, 1))
    for name in ("arm", "acc. %", "diff.", "95 % interval", "p", "found"):
        out.add_column(name, justify="left" if name in ("arm", "found") else "right", no_wrap=True)
    for arm, accuracy, _, difference, interval, p, finding, _ in rows(result, kind):
        out.add_row(
            arm,
            accuracy,
            difference.replace("reference", ""),
            interval,
            p,
            finding.removesuffix(" found") or "reference",
        )
    return out


def markdown(result: dict[str, Any]) -> str:
    """The same as a page."""
    parts = [f"# {'Deliberate generation' if 'rounds' in result else 'Ablation'}: {result['name']}\n"]
    for kind in result["training_sets"]:
        lines = ["| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *rows(result, kind)]]
        parts.append(f"## {_title(result, kind)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join([*parts, _real(result) + "\n", result["covers"] + "\n"])


def _title(result: dict[str, Any], kind: str) -> str:
    return f"trained on {kind.replace('_', ' ')}: {len(result['seeds'])} generator seeds, against {result['reference']}"


def _real(result: dict[str, Any]) -> str:
    if "real" not in result:
        return f"{result['images']:,} synthetic images in every arm, {result['rounds']} rounds"
    real = result["real"]
    return f"real images alone: {100 * real['mean']:.1f} % {_interval(real['interval'])}, over judge seeds"


def _row(arm: str, own: dict[str, Any], compared: dict[str, Any] | None) -> list[str]:
    first = [arm, f"{100 * own['mean']:.2f}", _interval(own["interval"])]
    if compared is None:
        return [*first, "reference", "", "", "", ""]
    return [
        *first,
        f"{100 * compared['difference']:+.2f}",
        _interval(compared["interval"]),
        "" if compared["p_adjusted"] is None else f"{compared['p_adjusted']:.3f}",
        compared["finding"],
        MANY if compared["needed"] is None else f"{compared['needed']:,}",
    ]


def _interval(bounds: list[float | None]) -> str:
    if None in bounds:
        return ""
    return "[" + ", ".join(f"{100 * bound:.2f}" for bound in bounds if bound is not None) + "]"
