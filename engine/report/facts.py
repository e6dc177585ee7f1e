"""Everything that a report says, read from a run's output; what a run has not made is None or empty."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePath
from typing import Any

import pyarrow.compute as pc

from engine import output
from engine.conditions import cuts
from engine.conditions.cuts import Cuts
from engine.evaluation.evaluationresults import Judged, JudgedArm
from engine.evaluation.plainly import sentences
from engine.evaluation.run_summary import flattened, order_of
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.regular import Json
from engine.shards import cost, manifest
from engine.shards.cost import Cost
from engine.shards.manifest import Manifest
from engine.spec import RunSpec, plain
from engine.spec.load import change_paths
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.training.trainingresults import Curve, MatchResults, PretrainResults

JUDGE, PRETRAIN, MATCH, SECONDS, PLAN, SPEC = (
    output.JUDGE,
    output.PRETRAIN,
    output.MATCH_RESULT,
    output.SECONDS,
    output.PLAN,
    output.SPEC,
)
LIBRARIES = ("torch", "diffusers", "transformers", "ray", "webdataset", "numpy", "pillow")


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it; `judge`, `plan` and `seconds` are their JSON, None or {} where absent.

    `curves` holds the losses of each training by name, `match` the fine-tune's results; `cost` is that of the synthetic
    set; `cuts` what is cut of its prompts, `test_readings` who read the test split.
    """

    spec: RunSpec
    spec_hash: str
    catalog: Catalog
    manifest: Manifest
    bad_images: Counter[str]
    quarantined: Counter[str]
    judge: Judged | None
    curves: dict[str, Curve]
    match: MatchResults | None
    plan: Json
    seconds: dict[str, float]
    versions: dict[str, str]
    cost: Cost
    cuts: Cuts | None
    test_readings: str = ""

    @property
    def splits(self) -> dict[str, int]:
        """Real images in each split that has any."""
        counts = {name: self.catalog.split(name).num_rows for name in ("train", "validation", "test", "unused")}
        return {name: count for name, count in counts.items() if count}

    def arm(self, kind: str) -> JudgedArm | None:
        """The judged arm of a kind with the largest multiple (never the best: that would be choosing on the test
        split)."""
        arms = [arm for arm in self._arms() if arm["kind"] == kind]
        return max(arms, key=lambda arm: arm["multiple"], default=None)

    def arms(self) -> list[JudgedArm]:
        """The judged arms: real, synthetic, mixed, controls, by rising multiple."""
        return sorted(self._arms(), key=order_of)

    def _arms(self) -> list[JudgedArm]:
        return [] if self.judge is None else list(self.judge["arms"].values())

    @property
    def metric(self) -> str:
        """What the judges' means and ratios are of."""
        return "accuracy" if self.judge is None else self.judge.get("metric", "accuracy")

    def honest(self) -> list[str]:
        """Sentences on copies and controls; none where nothing was judged."""
        return sentences(flattened(self.judge)) if self.judge is not None else []


def gather(store: Store, spec: RunSpec) -> Facts:
    """Read a run; raises DataError where it has no finished catalog or no finished synthetic set."""
    catalog, made = catalogs.load(store), manifest.load(store)
    match = documents.find(store, MATCH, MatchResults)
    return Facts(
        spec=spec,
        spec_hash=made.seal.facts.spec_hash,
        catalog=catalog,
        manifest=made,
        bad_images=_bad_images(store),
        quarantined=_counts(made.quarantine["reason"]),
        judge=documents.find(store, JUDGE, Judged),
        curves=_curves(store, match),
        match=match,
        plan=documents.find(store, PLAN, Json) or {},
        seconds=documents.find(store, SECONDS, dict[str, float]) or {},
        versions=versions(),
        cost=cost.gather(store, made.seal.facts),
        cuts=cuts.kept(store),
        test_readings=readings.sentence(readings.readings(store)),
    )


def versions() -> dict[str, str]:
    """Installed versions of the engine and of what its results depend on."""
    found = {}
    for name in ("mimeo", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def without_folders(spec: RunSpec) -> Json:
    """The spec as plain data whose local paths keep their last part only, as a report may be shared."""
    return change_paths(plain(spec), lambda key, path: PurePath(path).name)


def _curves(store: Store, match: MatchResults | None) -> dict[str, Curve]:
    trained = documents.find(store, PRETRAIN, PretrainResults)
    return ({} if trained is None else trained["stages"]) | ({} if match is None else {"match": match})


def _bad_images(store: Store) -> Counter[str]:
    return _counts(catalogs.quarantine(store)["reason"])


def _counts(column: Any) -> Counter[str]:
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})
