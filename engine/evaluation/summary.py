"""A run in one flat JSON and one table: accuracies, intervals, ratios to real, counts and times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from engine.evaluation.evaluationresults import ArmSummary, Judged, Summary
from engine.evaluation.judge import RESULT as JUDGE
from engine.images import catalog
from engine.shards import cost, manifest
from engine.spec import RunSpec, spec_hash
from engine.storage import documents
from engine.storage.store import Store

SUMMARY = "results/summary.json"
SECONDS = "results/seconds.json"


def summary(spec: RunSpec, store: Store) -> dict[str, Any]:
    """Gather a judged run into `results/summary.json`, and return it.

    For each arm A of `results/judge.json`: `A_accuracy`, `A_accuracy_interval`, `A_test_error` and, but for real, `A_ratio`
    and `A_ratio_interval`; `cost`: device-hours, energy in kWh and price of the synthetic set. Raises DataError where the run's manifest or catalog is not there.
    """
    judged = documents.read(store, JUDGE, Judged)
    sealed = manifest.load(store)
    result: dict[str, Any] = {
        "name": spec.name,
        "spec_hash": spec_hash(spec),
        "arms": {key: _size(arm) for key, arm in judged["arms"].items()},
        "n_train": judged["n_train"],
        "n_test": judged["n_test"],
        "judge_seeds": len(judged["seeds"]),
        "level": judged["level"],
        "covers": judged["covers"],
        "synthetic_images": sealed.seal.samples,
        "planned": sealed.seal.facts.count,
        "shards": sealed.seal.shards,
        "bytes": sealed.seal.bytes,
        "quarantined": sealed.seal.quarantined,
        "bad_real_images": catalog.load(store).quarantined,
        "seconds": documents.find(store, SECONDS, dict[str, float]) or {},
        "cost": cost.gather(store, sealed.seal.facts).to_json(spec.resources.price_per_hour),
    }
    for key, arm in judged["arms"].items():
        result |= _flat(key, arm)
    store.replace(SUMMARY, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode())
    return result


def read(store: Store) -> dict[str, Any] | None:
    """The summary of a judged run; None where it was not judged, DataError where the file is not what `summary` wrote."""
    fix = "remove it, then run mimeo report"
    found = documents.find(store, SUMMARY, Summary, fix)
    if found is None:
        return None
    flat = dict(found)
    for key in found["arms"]:
        own = {name.removeprefix(f"{key}_"): value for name, value in flat.items() if name.startswith(f"{key}_")}
        documents.parse(json.dumps(own).encode(), ArmSummary, f"{store.url}/{SUMMARY}", fix)
    return flat


def _size(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arm[name] for name in ("kind", "multiple", "real_images", "synthetic_images")}


def _flat(key: str, arm: Mapping[str, Any]) -> dict[str, Any]:
    flat = {
        f"{key}_accuracy": arm["mean"],
        f"{key}_accuracy_interval": arm["interval"],
        f"{key}_test_error": arm["test_error"],
    }
    if arm["kind"] != "real":
        flat |= {f"{key}_ratio": arm["ratio"], f"{key}_ratio_interval": arm["ratio_interval"]}
    return flat


def arm_label(arm: dict[str, Any]) -> str:
    """An arm in words, such as `synthetic 10x`; `arm` has `kind` and `multiple`."""
    words = {"real": "real", "synthetic": "synthetic", "mixed": "real + synthetic"}[arm["kind"]]
    return f"{words} {arm['multiple']}x" if arm["multiple"] else words


def arm_images(arm: dict[str, Any]) -> str:
    """What an arm trains on, such as `100 + 1,000`; real images first."""
    return " + ".join(f"{arm[name]:,}" for name in ("real_images", "synthetic_images") if arm[name])


def bracket(interval: list[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """An interval as ` [95.1, 97.9]`; empty where there is none."""
    low, high = interval
    return "" if low is None or high is None else f" [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent, such as `96.5 %`."""
    return f"{share * 100:.{digits}f} %"


def table(summary: dict[str, Any]) -> Table:
    """The summary for a terminal: arm, training images, accuracy in per cent and ratio to real, with intervals."""
    seeds, n_test = summary["judge_seeds"], summary["n_test"]
    out = Table(
        title=f"{summary['name']}: a classifier on {n_test:,} real test images, mean of {seeds} judge seeds",
        caption=f"{percent(summary['level'], 0)} intervals over judge seeds, one generator seed; ratios are paired by seed",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    out.add_column("trained on", no_wrap=True)
    for column in ("images", "accuracy %", "ratio to real"):
        out.add_column(column, justify="right", no_wrap=True)
    for key, arm in sorted(summary["arms"].items(), key=lambda item: _order(item[1])):
        accuracy = summary[f"{key}_accuracy"]
        ratio = summary.get(f"{key}_ratio")
        shown = f"{accuracy * 100:.1f}{bracket(summary[f'{key}_accuracy_interval'], 100)}"
        compared = "" if ratio is None else f"{ratio:.3f}{bracket(summary[f'{key}_ratio_interval'], 1, 3)}"
        out.add_row(arm_label(arm), arm_images(arm), Text(shown), Text(compared))
    return out


def _order(arm: dict[str, Any]) -> tuple[int, int]:
    return ("real", "synthetic", "mixed").index(arm["kind"]), arm["multiple"]
