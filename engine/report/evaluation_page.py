"""An evaluation in tables for a terminal, and as a section of the report."""

from __future__ import annotations

from typing import Literal, TypedDict

from markupsafe import Markup
from rich import box
from rich.table import Table

from engine.evaluation.classifier_evaluation import RESULT
from engine.evaluation.evaluationresults import (
    ArmGroup,
    ArmValues,
    Evaluated,
    EvaluatedSet,
    Gap,
    GapPair,
    Overlap,
    PairName,
)
from engine.evaluation.run_summary import bracket
from engine.report import figures
from engine.spec.evaluation import OWN
from engine.statistics.published import Compared
from engine.storage import documents
from engine.storage.store import Store

PAIR_LABELS: dict[PairName, str] = {
    "synthetic": "training vs synthetic",
    "real": "training vs held-out real",
    "held_out": "held-out real vs synthetic",
}
MEASURES: dict[Literal["features", "pixels"], str] = {"features": "AUC, features", "pixels": "AUC, pixels"}


def arm_words(arm: str) -> str:
    """An arm's key in words, such as `synthetic 10x`."""
    return arm.replace("mixed", "real + synthetic").replace("_", " ")


def set_words(name: str) -> str:
    """A set's name as the tables have it."""
    return "own test split" if name == OWN else name


class Row(TypedDict):
    """One set and arm: all but `mean` as the tables have it."""

    set: str
    images: str
    arm: str
    kind: str
    mean: float
    accuracy: str
    interval: str
    difference: str
    difference_interval: str
    p: str


class Page(TypedDict):
    """The section on an evaluation."""

    covers: str
    accuracy: Markup
    rows: list[Row]
    notes: list[str]
    arms: list[str]
    corruptions: list[list[str]]
    style: str
    gap: list[list[str]]
    gap_covers: str
    gap_figure: Markup | str
    classes: list[list[str]]


class Section(TypedDict):
    """The template's variable `evaluation`."""

    evaluation: Page | None


def accuracy_rows(result: Evaluated) -> list[Row]:
    """One row a set and arm, the mean over corruptions last: set, images, arm, numbers, and the difference to real."""
    rows = [row for name, one in result["sets"].items() for row in _rows(set_words(name), f"{one['images']:,}", one)]
    if result["corruptions"] is not None:
        rows += _rows("corruptions (-C style)", "", result["corruptions"]["mean"])
    return rows


def _rows(label: str, images: str, one: ArmGroup) -> list[Row]:
    compared = {entry["arm"]: entry for entry in one["comparisons"]}
    return [_row(label, images, arm, own, compared.get(arm)) for arm, own in one["arms"].items()]


def _row(label: str, images: str, arm: str, own: ArmValues, difference: Compared | None) -> Row:
    p = difference["p_adjusted"] if difference else None
    return {
        "set": label,
        "images": images,
        "arm": arm_words(arm),
        "kind": figures.hue(arm),
        "mean": own["mean"],
        "accuracy": f"{100 * own['mean']:.1f}",
        "interval": bracket(own["interval"], 100).strip(),
        "difference": f"{100 * difference['difference']:+.1f}" if difference else "",
        "difference_interval": bracket(difference["interval"], 100).strip() if difference else "",
        "p": "" if p is None else f"{p:.3f}",
    }


def corruption_rows(result: Evaluated) -> tuple[list[str], list[list[str]]]:
    """(arms, rows): kind of corruption, then each arm's accuracy over the severities in per cent."""
    kinds = {} if result["corruptions"] is None else result["corruptions"]["kinds"]
    arms = list(result["seeds"])
    return arms, [
        [kind.replace("_", " "), *(f"{100 * one['arms'][arm]['mean']:.1f}" for arm in arms)]
        for kind, one in kinds.items()
    ]


def gap_rows(result: Evaluated) -> list[list[str]]:
    """Pair, both AUCs with intervals, mean CKA, mean angle and mean shift."""
    if result["gap"] is None:
        return []
    return [_gap_row(PAIR_LABELS[pair], one) for pair, one in result["gap"]["pairs"].items()]


def _gap_row(label: str, one: GapPair) -> list[str]:
    aucs = [f"{own['auc']:.3f}{bracket(own['interval'], 1, 3)}" for own in (one["features"], one["pixels"])]
    return [label, *aucs, *_overlap(one["mean"])]


def _overlap(one: Overlap) -> list[str]:
    formats = ((one["cka"], ".3f"), (one["angle"], ".0f"), (one["shift"], ".2f"))
    return ["" if value is None else format(value, how) for value, how in formats]


def class_rows(result: Evaluated) -> list[list[str]]:
    """Class, then CKA, angle and shift of training images to synthetic and to held-out ones."""
    if result["gap"] is None:
        return []
    pairs = result["gap"]["pairs"]
    return [
        [name, *_overlap(pairs["synthetic"]["classes"][k]), *_overlap(pairs["real"]["classes"][k])]
        for k, name in enumerate(result["class_names"])
    ]


def tables(result: Evaluated) -> list[Table]:
    """Accuracy by set and arm, by corruption, and the gap, for a terminal."""
    seeds = max(len(own) for own in result["seeds"].values())
    title = f"accuracy % by set and arm: {seeds} seeds, 95 % intervals; differences are to real, paired by seed"
    columns = ["set", "images", "trained on", "acc. %", "95 %", "diff.", "95 %", "p"]
    out = [_table(title, columns, [_shown(row) for row in accuracy_rows(result)], left=(0, 2))]
    arms, rows = corruption_rows(result)
    if rows:
        title = "accuracy % by corruption, mean over severities; computed here, -C style: not the published sets"
        out.append(_table(title, ["corruption", *map(arm_words, arms)], rows))
    if result["gap"] is not None:
        title = f"gap: {result['gap']['images']:,} images a side; 0.5: cannot be told apart"
        out.append(_table(title, ["pair", *MEASURES.values(), "CKA", "angle", "shift"], gap_rows(result)))
    return out


def _shown(row: Row) -> list[str]:
    own = [row["set"], row["images"], row["arm"], row["accuracy"], row["interval"]]
    return [*own, row["difference"], row["difference_interval"], row["p"]]


def _table(title: str, columns: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> Table:
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for k, name in enumerate(columns):
        out.add_column(name, justify="left" if k in left else "right")
    last = ""
    for row in rows:
        shown = ["" if row[0] == last else row[0], *row[1:]]
        last = row[0]
        out.add_row(*(text.replace("[", "\\[") for text in shown))
    return out


def context(store: Store) -> Section:
    """What the template needs: `evaluation` is None for a run that was not evaluated."""
    result = documents.find(store, RESULT, Evaluated)
    if result is None:
        return {"evaluation": None}
    arms, corruptions = corruption_rows(result)
    groups: dict[str, ArmGroup] = {set_words(name): one for name, one in result["sets"].items()}
    if result["corruptions"] is not None:
        groups["corruptions"] = result["corruptions"]["mean"]
    return {
        "evaluation": {
            "covers": result["covers"],
            "accuracy": figures.groups(_bars(groups)),
            "rows": accuracy_rows(result),
            "notes": [note for name, one in result["sets"].items() if (note := _note(name, one))],
            "arms": [arm_words(arm) for arm in arms],
            "corruptions": corruptions,
            "style": "" if result["corruptions"] is None else result["corruptions"]["note"],
            "gap": gap_rows(result),
            "gap_covers": "" if result["gap"] is None else result["gap"]["covers"],
            "gap_figure": figures.aucs(_points(result["gap"])) if result["gap"] else "",
            "classes": class_rows(result),
        }
    }


def _bars(groups: dict[str, ArmGroup]) -> dict[str, list[figures.Bar]]:
    return {
        label: [
            figures.Bar(
                label=arm_words(arm),
                kind=figures.hue(arm),
                mean=100 * own["mean"],
                interval=tuple(None if bound is None else 100 * bound for bound in own["interval"]),
                values=tuple(100 * value for value in own["values"]),
            )
            for arm, own in one["arms"].items()
        ]
        for label, one in groups.items()
    }


def _points(gap: Gap) -> dict[str, list[tuple[str, float, tuple[float | None, ...]]]]:
    return {
        label: [
            (PAIR_LABELS[pair], one[what]["auc"], tuple(one[what]["interval"])) for pair, one in gap["pairs"].items()
        ]
        for what, label in MEASURES.items()
    }


def _note(name: str, one: EvaluatedSet) -> str:
    """What was left out of a set, and among which classes was chosen; empty where nothing was."""
    parts = []
    if one["left_out"]:
        parts.append(f"{sum(one['left_out'].values()):,} images of {len(one['left_out'])} unmapped classes left out")
    if one["trained_on"]:
        parts.append(f"{one['trained_on']:,} images left out that the run trained on")
    if one["bad"]:
        parts.append(f"{one['bad']:,} bad images left out")
    if one["restricted"]:
        parts.append(f"the classifier chose among the set's {len(one['classes'])} classes only")
    return f"{set_words(name)}: {'; '.join(parts)}." if parts else ""
