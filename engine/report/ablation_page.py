"""An ablation, or deliberate generation against a static plan, in words and tables: every arm with its interval, what
was found, and how many seeds would settle the rest."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from engine.statistics.published import Compared, StudyArm, StudyGroup
from engine.study.publishedresults import AblationResult, DeliberateResult
from engine.study.studyresults import Copied

Result = AblationResult | DeliberateResult
MANY = "more than 16,384"


def rows(found: StudyGroup) -> list[list[str]]:
    """A row an arm of one training set, as text under HEAD."""
    compared = {entry["arm"]: entry for entry in found["comparisons"]}
    return [_row(arm, own, compared.get(arm)) for arm, own in found["arms"].items()]


HEAD = [
    "arm",
    "accuracy %",
    "95 % over seeds",
    "and images",
    "difference",
    "95 % over seeds",
    "and images",
    "p (Holm)",
    "finding",
    "seeds needed",
]


def table(result: Result, kind: str) -> Table:
    """The most of it, in 80 columns for a terminal; intervals are those over seeds and images."""
    out = Table(title=_title(result, kind), box=box.SIMPLE, title_justify="left", caption=_real(result), padding=(0, 1))
    for name in ("arm", "acc. %", "diff.", "95 % interval", "p", "found"):
        out.add_column(name, justify="left" if name in ("arm", "found") else "right", no_wrap=True)
    copies = _copied(result)
    if copies:
        out.add_column("copies %", justify="right", no_wrap=True)
    for arm, accuracy, _, _, difference, _, interval, p, finding, _ in rows(result["training_sets"][kind]):
        shown = [arm, accuracy, difference.replace("reference", ""), interval, p]
        shown += [finding.removesuffix(" found") or "reference"]
        out.add_row(*shown, *([f"{100 * copies[arm]['share']:.1f}"] if arm in copies else []))
    return out


def lines(result: Result) -> list[str]:
    """The choice, and what the one reading of the test split says of it, a sentence each."""
    test, reference = result["test"], result["reference"]
    found = [f"best on {result['validation_images']:,} validation images: {result['chosen']}"]
    if test is None:
        return [*found, "there is no test split to read"]
    chosen = test["choice"]
    for kind, own in test["training_sets"].items():
        said = (
            f"test split, read once, {len(test['seeds'])} fresh generator seeds, trained on {kind.replace('_', ' ')}: "
        )
        said += f"{reference} {100 * own['arms'][reference]['mean']:.2f} %"
        for entry in own["comparisons"]:
            said += f", {chosen} {100 * own['arms'][chosen]['mean']:.2f} %, {100 * entry['difference']:+.2f} points "
            said += f"{_interval(entry['population'])}: {entry['finding']}"
        found.append(said)
    if not test["of_this_choice"]:
        found.append(
            f"that reading is of {chosen}, chosen earlier; it is not repeated for the new choice: use another output"
        )
    return found


def markdown(result: Result) -> str:
    """The same as a page."""
    parts = [f"# {'Deliberate generation' if 'rounds' in result else 'Ablation'}: {result['name']}\n"]
    parts += [_section(f"## {_title(result, kind)}", found) for kind, found in result["training_sets"].items()]
    parts += ["\n".join(f"- {line}" for line in lines(result)) + "\n"]
    if copies := _copied(result):
        parts += [_copies(copies)]
    if result["test"] is not None:
        sets = result["test"]["training_sets"].items()
        parts += [_section(f"## Test split, trained on {kind.replace('_', ' ')}", found) for kind, found in sets]
    effect = (
        f"Seeds needed: to show {100 * result['effect']:g} points, stated beforehand, "
        "with 80 % power under the correction.\n"
    )
    return "\n".join([*parts, _real(result) + "\n", effect, result["covers"] + "\n"])


def _copied(result: Result) -> Mapping[str, Copied]:
    return {} if "rounds" in result else result.get("copies", {})


def _copies(copies: Mapping[str, Copied]) -> str:
    lines = [f"| {arm} | {100 * own['share']:.1f} | {own['auc']:.2f} |" for arm, own in copies.items()]
    return "\n".join(["| arm | copy share % (pixels) | membership AUC |", "| --- | --- | --- |", *lines]) + "\n"


def _section(title: str, found: StudyGroup) -> str:
    grid = ["| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *rows(found)]]
    return f"{title}\n\n" + "\n".join(grid) + "\n"


def _title(result: Result, kind: str) -> str:
    return (
        f"validation images, trained on {kind.replace('_', ' ')}: {len(result['seeds'])} "
        f"generator seeds, against {result['reference']}"
    )


def _real(result: Result) -> str:
    if "real" not in result:
        return f"{result['images']:,} synthetic images in every arm, {result['rounds']} rounds"
    real = result["real"]
    return f"real images alone: {100 * real['mean']:.1f} % {_interval(real['interval'])}, over generator seeds' judges"


def _row(arm: str, own: StudyArm, compared: Compared | None) -> list[str]:
    first = [arm, f"{100 * own['mean']:.2f}", _interval(own["interval"]), _interval(own["population"])]
    if compared is None:
        return [*first, "reference", "", "", "", "", ""]
    return [
        *first,
        f"{100 * compared['difference']:+.2f}",
        _interval(compared["interval"]),
        _interval(compared["population"]),
        "" if compared["p_adjusted"] is None else f"{compared['p_adjusted']:.3f}",
        compared["finding"],
        MANY if compared["needed"] is None else f"{compared['needed']:,}",
    ]


def _interval(bounds: list[float | None]) -> str:
    if None in bounds:
        return ""
    return "[" + ", ".join(f"{100 * bound:.2f}" for bound in bounds if bound is not None) + "]"
