"""A study of worth as a table, a page and sentences: accuracy, ratio, copy share and the best control side by side."""

from __future__ import annotations

from rich import box
from rich.table import Table

from engine.evaluation.run_summary import arm_label, bracket
from engine.statistics.published import Compared
from engine.study.publishedresults import WorthResult

HEAD = [
    "trained on",
    "value %",
    "95 % over seeds",
    "ratio to real",
    "copy share % (pixels, features)",
    "membership AUC",
    "against the reference",
]


def rows(result: WorthResult) -> list[list[str]]:
    """A row an arm, as text under HEAD."""
    compared = {entry["arm"]: entry for entry in result["comparisons"]}
    out = []
    for arm, own in result["arms"].items():
        copies = result["copies"].get(str(own["multiple"])) if own["kind"] in ("synthetic", "mixed") else None
        ratio = "" if own["ratio"] is None else f"{own['ratio']:.3f}{bracket(own['ratio_interval'], 1, 3)}"
        told = compared.get(arm)
        out.append(
            [
                arm_label(own),
                f"{100 * own['mean']:.1f}",
                bracket(own["interval"], 100).strip(),
                ratio,
                ""
                if copies is None
                else " and ".join(
                    f"{100 * own['share']['mean']:.1f}" for own in (copies["pixels"], copies["features"])
                ),
                "" if copies is None else f"{copies['pixels']['auc']['mean']:.2f}",
                ("the reference" if arm == result["reference"] else "") if told is None else _against(told),
            ]
        )
    return out


def _against(told: Compared) -> str:
    return f"{100 * told['difference']:+.1f}{bracket(told['interval'], 100)}: {told['finding']}"


def table(result: WorthResult) -> Table:
    """The most of it for a terminal."""
    out = Table(title=_title(result), box=box.SIMPLE, title_justify="left", padding=(0, 1))
    for number, name in enumerate(("trained on", "%", "95 %", "ratio", "copies %", "AUC", "against reference")):
        out.add_column(name, justify="left" if number in (0, 6) else "right")
    for row in rows(result):
        out.add_row(*row)
    return out


def lines(result: WorthResult) -> list[str]:
    """What was found, a sentence each."""
    reference = result["arms"][result["reference"]]
    said = [
        f"the reference is {arm_label(reference)}, the best of real images alone on "
        f"{result['images']['validation']:,} validation "
        f"images, where it has {100 * result['validation'][result['reference']]:.1f} %"
    ]
    better = [entry["arm"] for entry in result["comparisons"] if entry["finding"] == "higher"]
    gain = [arm_label(result["arms"][arm]) for arm in better]
    if len(result["seeds"]) < 2:
        return [*said, "one generator seed gives no verdict"]
    said.append(
        f"a gain over it: {', '.join(gain)}"
        if gain
        else "no training set with synthetic images is found to be above it"
    )
    for multiple, own in result["copies"].items():
        if own["called_copies"]:
            said.append(
                f"the first {multiple}x hold copies of training images in {own['called_copies']} of "
                f"{len(result['seeds'])} sets"
            )
    return said


def markdown(result: WorthResult) -> str:
    """The same as a page."""
    grid = ["| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *rows(result)]]
    parts = [f"# {_title(result)}", "\n".join(grid), "\n".join(f"- {line}" for line in lines(result)), result["covers"]]
    parts += [f"{kind} is left out: {why}" for kind, why in result["left_out"].items()]
    return "\n\n".join(parts) + "\n"


def _title(result: WorthResult) -> str:
    judges, tested = result["judge_seeds"], result["images"]["test"]
    return (
        f"{result['name']}: {result['metric'].replace('_', ' ')} on {tested:,} test "
        f"images, {len(result['seeds'])} generator seeds x {judges} judges"
    )
