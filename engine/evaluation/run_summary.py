"""A run in one flat JSON and one table: accuracies, intervals, ratios to real, copies, controls, counts and times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from engine import output
from engine.evaluation.controls import WORDS as CONTROLS
from engine.evaluation.evaluationresults import ArmSize, ArmSummary, Judged, JudgedArm, Summary
from engine.evaluation.judge_result import RESULT as JUDGE
from engine.images import catalog
from engine.regular import Json
from engine.shards import cost, manifest
from engine.spec import RunSpec, spec_hash
from engine.statistics.published import Spread
from engine.storage import documents
from engine.storage.store import Store
from engine.training.measures import WORDS as METRIC_WORDS

SUMMARY = output.SUMMARY
SECONDS = output.SECONDS


def summary(spec: RunSpec, store: Store) -> Json:
    """Gather a judged run into `results/summary.json`, and return it.

    For each arm A of `results/judge.json`: `A_accuracy`, `A_accuracy_interval`, `A_test_error` and, but for real,
    `A_ratio` and `A_ratio_interval` (of `metric`), `A_balanced_accuracy`, `A_macro_f1` and `A_auroc` with intervals;
    where it has synthetic images `A_copy_share` and what belongs to it, `A_best_control` and how it differs; `cost`:
    device-hours, energy in kWh and price of the synthetic set. Raises DataError where the run's manifest or catalog is
    not there.
    """
    judged = documents.read(store, JUDGE, Judged)
    sealed = manifest.load(store)
    result: Json = {
        "name": spec.name,
        "spec_hash": spec_hash(spec),
        "synthetic_images": sealed.seal.samples,
        "planned": sealed.seal.facts.count,
        "shards": sealed.seal.shards,
        "bytes": sealed.seal.bytes,
        "quarantined": sealed.seal.quarantined,
        "bad_real_images": catalog.load(store).quarantined,
        "seconds": documents.find(store, SECONDS, dict[str, float]) or {},
        "cost": cost.gather(store, sealed.seal.facts).to_json(spec.resources.price_per_hour),
        **flattened(judged),
    }
    store.replace(SUMMARY, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode())
    return result


def flattened(judged: Judged) -> Json:
    """What a summary says of `results/judge.json`, whose content `judged` is."""
    result: Json = {
        "arms": {key: _size(arm) for key, arm in judged["arms"].items()},
        "n_train": judged["n_train"],
        "n_test": judged["n_test"],
        "judge_seeds": len(judged["seeds"]),
        "level": judged["level"],
        "metric": judged.get("metric", "accuracy"),
        "left_out": judged.get("left_out", {}),
        "covers": judged["covers"],
    }
    for key, arm in judged["arms"].items():
        result |= _flat(key, arm)
    return result


def read(store: Store) -> Json | None:
    """The summary of a judged run; None where it was not judged, DataError where the file is not what `summary`
    wrote."""
    fix = "remove it, then run mimeo report"
    found = documents.find(store, SUMMARY, Summary, fix)
    if found is None:
        return None
    flat = dict(found)
    for key in found["arms"]:
        own = {name.removeprefix(f"{key}_"): value for name, value in flat.items() if name.startswith(f"{key}_")}
        documents.parse(json.dumps(own).encode(), ArmSummary, f"{store.url}/{SUMMARY}", fix)
    return flat


def _size(arm: JudgedArm) -> ArmSize:
    return {
        "kind": arm["kind"],
        "multiple": arm["multiple"],
        "real_images": arm["real_images"],
        "synthetic_images": arm["synthetic_images"],
    }


def _flat(key: str, arm: JudgedArm) -> Json:
    measures: Mapping[str, Spread] = arm.get("measures") or {"accuracy": arm}
    flat: Json = {f"{key}_test_error": arm["test_error"]}
    for metric, own in measures.items():
        flat |= {f"{key}_{metric}": own["mean"], f"{key}_{metric}_interval": own["interval"]}
    if arm["kind"] != "real":
        flat |= {f"{key}_ratio": arm["ratio"], f"{key}_ratio_interval": arm["ratio_interval"]}
    if (copies := arm.get("copies")) is not None:
        pixels = copies["pixels"]
        flat |= {
            f"{key}_copy_share": pixels["share"],
            f"{key}_copy_share_interval": pixels["interval"],
            f"{key}_copy_share_null": pixels["null"],
            f"{key}_copy_share_features": copies["features"]["share"],
            f"{key}_membership_auc": pixels["auc"],
            f"{key}_copies": copies["verdict"],
        }
    if (control := arm.get("control")) is not None:
        flat |= {
            f"{key}_best_control": control["best"],
            f"{key}_best_control_mean": control["mean"],
            f"{key}_control_difference": control["difference"],
            f"{key}_control_difference_interval": control["interval"],
            f"{key}_control_finding": control["finding"],
        }
    return flat


def arm_label(arm: Mapping[str, Any]) -> str:
    """An arm in words, such as `synthetic 10x`; `arm` has `kind` and `multiple`."""
    words = {"real": "real", "synthetic": "synthetic", "mixed": "real + synthetic", **CONTROLS}[arm["kind"]]
    return f"{words} {arm['multiple']}x" if arm["multiple"] else words


def arm_images(arm: Mapping[str, Any]) -> str:
    """What an arm trains on, such as `100 + 1,000`; real images first."""
    return " + ".join(f"{arm[name]:,}" for name in ("real_images", "synthetic_images") if arm[name])


def copied(arm: Mapping[str, Any]) -> str:
    """The copy share of a judged arm's synthetic images in per cent, with its interval; empty where it has none."""
    if (copies := arm.get("copies")) is None:
        return ""
    return f"{copies['pixels']['share'] * 100:.1f}{bracket(copies['pixels']['interval'], 100)}"


def best_control(arm: Mapping[str, Any]) -> str:
    """The best control against a judged arm, such as `95.4 (photocopies)`; empty where there is none."""
    if (control := arm.get("control")) is None:
        return ""
    return f"{control['mean'] * 100:.1f} ({CONTROLS[control['best'].partition('_')[0]]})"


def bracket(interval: list[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """An interval as ` [95.1, 97.9]`; empty where there is none."""
    low, high = interval
    return "" if low is None or high is None else f" [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent, such as `96.5 %`."""
    return f"{share * 100:.{digits}f} %"


def table(summary: Json) -> Table:
    """The summary for a terminal: each arm's metric in per cent and ratio to real with intervals, copy share and best
    control."""
    seeds, n_test, metric = summary["judge_seeds"], summary["n_test"], summary.get("metric", "accuracy")
    out = Table(
        title=f"{summary['name']}: a classifier on {n_test:,} real test images, mean of {seeds} judge seeds",
        caption=_caption(summary),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
    )
    out.add_column("trained on", no_wrap=True)
    for column in (f"{METRIC_WORDS[metric]} %", "ratio to real"):
        out.add_column(column, justify="right", no_wrap=True)
    for column, width in (("copies %", 6), ("best control", 7)):
        out.add_column(column, justify="right", min_width=width)
    for key, arm in sorted(summary["arms"].items(), key=lambda item: order_of(item[1])):
        ratio, copies, control = (summary.get(f"{key}_{name}") for name in ("ratio", "copy_share", "best_control_mean"))
        shown = f"{summary[f'{key}_{metric}'] * 100:.1f}{bracket(summary[f'{key}_{metric}_interval'], 100)}"
        compared = "" if ratio is None else f"{ratio:.3f}{bracket(summary[f'{key}_ratio_interval'], 1, 3)}"
        beside = ["" if value is None else f"{value * 100:.1f}" for value in (copies, control)]
        out.add_row(arm_label(arm), *map(Text, (shown, compared, *beside)))
    return out


def _caption(summary: Json) -> str:
    text = f"1x is {summary['n_train']:,} images; " if "n_train" in summary else ""
    text += f"{percent(summary['level'], 0)} intervals over judge seeds, one generator seed; ratios are paired by seed"
    if summary.get("left_out"):
        text += "; left out: " + ", ".join(f"{CONTROLS[kind]} ({why})" for kind, why in summary["left_out"].items())
    return text


def order_of(arm: Mapping[str, Any]) -> tuple[int, int]:
    """Where an arm stands in a table: real, synthetic, mixed, then controls."""
    return ("real", "synthetic", "mixed", *CONTROLS).index(arm["kind"]), arm["multiple"]
