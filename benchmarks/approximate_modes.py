"""What the modes that leave work out cost in quality, and what they save, on 100 real digits (python -m
benchmarks.approximate_modes).

`mimeo study ablation` with the exact mode as reference: for each seed a generator is trained on the 100 images only,
every mode draws 1,000 images with it, and classifiers trained on these alone are tested on 899 real images. Beside
their accuracy stands the Fréchet distance (Heusel et al. 2017, arXiv 1706.08500, equation 6) between the 1,000 images
and the 899, in the space of their 64 pixels: no Inception network is at hand, and 8 x 8 digits are not what it was
trained for. Rates are images a second of the drawing alone, from the records of the shards; trials run beside each
other, one a core, so their noise is that of a busy machine. Everything is paired by seed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pairs
from benchmarks.machine import machine
from engine.spec import RunSpec, validate
from engine.statistics.comparison import compare
from engine.storage.store import Store

REFERENCE = "exact"
MODES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "guided in the middle": {"generate.guidance_interval": [0.2, 0.8]},
    "features kept 2 steps": {"generate.cache_interval": 2},
    "features kept 3 steps": {"generate.cache_interval": 3},
    "both": {"generate.guidance_interval": [0.2, 0.8], "generate.cache_interval": 2},
    "6 steps": {"generate.num_inference_steps": 6},
    "4 steps": {"generate.num_inference_steps": 4},
    "2 steps": {"generate.num_inference_steps": 2},
}
KIND = "synthetic_10x"


def arm_of(mode: str) -> str:
    """The name of a mode's arm."""
    return mode.replace(" ", "_")


def make_spec(seeds: int, *, quick: bool) -> RunSpec:
    """The quickstart's recipe as an ablation over the modes."""
    recipe = {
        "name": "modes",
        "source": {"kind": "digits"},
        "images": {"size": 8},
        "split": {"train": 100, "validation": 0, "test": 899},
        "conditions": {"prompt": "photo of {class}, {caption}", "caption": {"kind": "moments"}},
        "generate": {
            "count": 1000,
            "shard_size": 500,
            "scheduler": "dpmsolver++",
            "num_inference_steps": 12,
            "guidance_scale": 2.0,
            "visual_token": "own",
        },
        "judge": {"arms": ["real", "synthetic"], "multiples": [10], "seeds": 3, **({"steps": 2} if quick else {})},
        "ablation": {
            "seeds": seeds,
            "reference": REFERENCE,
            "arms": {arm_of(mode): changes for mode, changes in MODES.items()},
        },
        "resources": {"batch_size": 100},
    }
    if quick:
        recipe["pretrain"] = {"vae": {"steps": 2}, "unet": {"steps": 2}}
    return validate(recipe)


def frechet(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Squared Fréchet distance of two sets (n, D), (m, D), each taken for a normal distribution."""
    from scipy import linalg

    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = float(np.square(first.mean(0) - second.mean(0)).sum())
    # the roots of the eigenvalues of ab, which are those of a symmetric positive semi-definite matrix
    cross = np.sqrt(np.abs(linalg.eigvals(a @ b).real)).sum()
    return shift + float(np.trace(a) + np.trace(b) - 2 * cross)


def flat(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Grey values (N, S * S), 0 to 1, of (N, S, S, 3)."""
    return pixels.mean(axis=3).reshape(len(pixels), -1) / 255


def drawn(spec: RunSpec, store: Store) -> tuple[NDArray[np.float64], float]:
    """The images of one trial as grey values, and how many a second were drawn."""
    from engine.shards.names import DATA
    from engine.study.trial import quiet
    from engine.training.judge_data import synthetic_images

    with quiet().task("images", spec.generate.count) as task:
        arrays = synthetic_images(spec, store, spec.generate.count, task)
    shards = [entry.name for entry in store.list(f"{DATA}/{spec.name}-") if entry.name.endswith(".json")]
    records = [json.loads(store.read(name)) for name in shards]
    return flat(arrays.pixels), len(arrays.labels) / sum(record["seconds"] for record in records)


def study(spec: RunSpec, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]], dict[str, Any]]:
    """Run it: the ablation's result, rates and distances by arm and seed, and facts of the machine."""
    from engine.cluster.progress import PlainReporter
    from engine.cluster.session import session
    from engine.images import catalog
    from engine.storage.claim import claim
    from engine.storage.store import open_store
    from engine.study.ablation_arms import every_arm
    from engine.study.ablation_run import ablation
    from engine.study.trial import quiet
    from engine.training.judge_data import real_images

    store, reporter = open_store(str(folder)), PlainReporter(sys.stderr)
    claim(store, spec)
    with session(spec.resources, store=store):
        made = catalog.build(spec, store, reporter)
        result, facts = ablation(spec, made, store, reporter), machine("approximate_modes")
    with quiet().task("real images", made.table.num_rows) as task:
        test = flat(real_images(spec, made.split("test"), task, same_codec=False).pixels)
    found: dict[str, dict[str, list[float]]] = {"rate": {}, "distance": {}}
    for trial in every_arm(spec):
        images, rate = drawn(trial.spec, open_store(str(folder / "trials" / f"seed-{trial.spec.seed}" / trial.arm)))
        found["rate"].setdefault(trial.arm, []).append(rate)
        found["distance"].setdefault(trial.arm, []).append(frechet(images, test))
    half = len(test) // 2
    found["distance"]["real"] = [frechet(test[:half], test[half:])]
    return result, found, facts


def results(result: dict[str, Any], found: dict[str, dict[str, list[float]]]) -> list[pairs.Row]:
    """For each mode its rate over the exact one's, its distance, and its accuracy with the difference to the exact
    one's."""
    sets = result["training_sets"][KIND]
    accuracy = {one["arm"]: one for one in sets["comparisons"]}
    drawn_ones = {arm: own for arm, own in found["distance"].items() if arm != "real"}
    distance = {one.arm: one.to_json() for one in compare(drawn_ones, REFERENCE)}
    rows: list[pairs.Row] = []
    for mode in MODES:
        arm = arm_of(mode)
        rate, far = found["rate"][arm], found["distance"][arm]
        values = sets["arms"][arm]["values"]
        ratio, noise = pairs.ratio(rate, found["rate"][REFERENCE]), pairs.spread(found["rate"][REFERENCE])
        rows.append(pairs.judged(mode, "times the images a second", ratio, noise, None, rates=rate))
        rows.append(pairs.judged(mode, "Fréchet distance", statistics.mean(far), 0.0, None, compared=distance.get(arm)))
        rows.append(pairs.judged(mode, "accuracy", statistics.mean(values), 0.0, None, compared=accuracy.get(arm)))
    rows.append(pairs.judged("half of the test set", "Fréchet distance", found["distance"]["real"][0], 0.0, None))
    rows.append(pairs.judged("100 real images", "accuracy", result["real"]["mean"], 0.0, None))
    return rows


def main() -> None:
    """Run the study, print a table, write the JSON."""
    parser = pairs.parser(__doc__, pairs=5)
    parser.add_argument("--folder", type=Path, help="an output of an earlier call to go on with")
    arguments = parser.parse_args()
    spec = make_spec(2 if arguments.quick else arguments.pairs, quick=arguments.quick)
    with tempfile.TemporaryDirectory(prefix="modes-") as place:
        result, found, facts = study(spec, arguments.folder or Path(place) / "out")
    pairs.finish("approximate_modes", results(result, found), arguments, facts)


if __name__ == "__main__":
    main()
