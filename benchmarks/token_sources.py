"""Which source of visual tokens covers a class without copying its training images (python -m
benchmarks.token_sources).

No generator takes part: what a source draws are feature vectors, compared with the features of held-out images of the
same class. CLIP, SimCLR and a classifier are trained on the training images alone, as `pretrain` does; the tokens are
those that a run would draw. Half of the held-out images are the reference, the other half stand as a source of their
own: what a perfect one would reach.

Precision, recall, density and coverage are those of Naeem et al. (arXiv 2002.09797) with 5 neighbours, each class alone
with as many draws as reference images, then averaged. `energy`: the energy distance by its U-statistic over the mean
distance of two images of the class, 0 for equal distributions. `copies`: the share of draws nearer to a training image
than 99 % of the other held-out half.
`accuracy`: of a logistic regression trained on the draws (4 times the training images), read on the reference half.
Figures are means over seeds, each with a split and networks of its own, with the lowest and the highest. A case that is
measured alone takes the place of its rows in the file of results.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import pairs
from benchmarks.machine import machine
from engine.conditions import tokens
from engine.conditions.table import Conditions
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.spec import RunSpec, validate
from engine.training.judge_model import AUGMENTATIONS
from engine.training.loop import Loop
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.encoder import EncoderStage
from engine.training.pretrain.pretrain_stage import Setting, TrainingSet
from engine.training.pretrain.training_features import features
from engine.training.setup import Place

CASES = ("digits 100", "digits 500", "cifar10 1000")
NEIGHBOURS = 5
MULTIPLE = 4
QUANTILE = 0.01
SOURCES = ("own", "class", "class_mean", "interpolation", "class_gaussian", "prior")
METRICS = ("precision", "recall", "density", "coverage", "energy", "copies", "accuracy")
CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {
    "digits": {"augment": "affine"},
    "cifar10": {
        "augment": "flip",
        "clip": {"patch": 4},
        "encoder": {"blocks": [64, 128, 64], "patch": 4, "crop": 0.3, "jitter": 0.4},
    },
}

Array = NDArray[Any]
Images = tuple[Array, Array]


def digits() -> Images:
    """scikit-learn's digits: pixels (1797, 8, 8, 3) uint8 and labels."""
    data = load_digits()
    pixels = (data.images * 255 / 16).round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=3), data.target


def cifar10(path: Path, count: int) -> Images:
    """The first `count` images of CIFAR-10's training part as Parquet of the Hugging Face Hub: pixels (N, 32, 32, 3)
    and labels."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(path).slice(0, count)
    column = table["image"] if "image" in table.column_names else table["img"]
    pixels = [np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("RGB")) for one in column.to_pylist()]
    return np.stack(pixels), table["label"].to_numpy()


def encoders(name: str, train: Images, seed: int, quick: bool) -> Iterator[tuple[str, Any]]:
    """CLIP and the two kinds of encoder, trained on `train`; each as a function from pixels to features."""
    pixels, labels = train
    names = tuple(map(str, range(int(labels.max()) + 1)))
    prompts = tuple(f"photo of {label}" for label in labels)

    def setting(**changes: Any) -> Setting:
        pretrain = {**SIZES[name], **changes}
        data = {"name": name, "seed": seed, "source": {"kind": "digits"}, "pretrain": pretrain}
        spec = validate({**data, "images": {"size": pixels.shape[1]}})
        told = TrainingSet(
            torch.from_numpy(pixels), torch.from_numpy(labels), prompts, tuple(f"photo of {n}" for n in names), names
        )
        return Setting(spec, Place(0, 1, CPU), told, AUGMENTATIONS[spec.pretrain.augment])

    few = {"steps": 4} if quick else {}
    encoder = SIZES[name].get("encoder", {})
    clip = ClipStage(setting(clip={**SIZES[name].get("clip", {}), **few}), train_tokenizer(prompts, 16))
    stages: dict[str, Any] = {"clip": clip}
    for kind in ("simclr", "classifier"):
        stages[kind] = EncoderStage(setting(encoder={**encoder, "kind": kind, **few}))
    for kind, stage in stages.items():
        loop = Loop(stage, Place(0, 1, CPU))
        loop.run(checkpoint_every=10**9, save=lambda: None, out_of_time=lambda: False, tell=lambda step, loss: None)
        model = None if kind == "clip" else stage.model
        yield kind, lambda part, model=model: features(clip.model, model, normalise(torch.from_numpy(part))).numpy()


def drawn(source: str, known: Array, labels: Array, seed: int) -> tuple[Array, Array]:
    """Tokens and classes of a balanced plan of `MULTIPLE` times the training images, drawn as a run draws them."""
    spec: RunSpec = validate(
        {
            "name": "tokens",
            "seed": seed,
            "source": {"kind": "digits"},
            "generate": {"visual_token": source, "count": MULTIPLE * len(labels), "classes": "balanced"},
        }
    )
    classes = int(labels.max()) + 1
    keys = tuple(map(str, range(len(labels))))
    means = np.stack([known[labels == label].mean(axis=0) for label in range(classes)])
    names = tuple(map(str, range(classes)))
    fits = tokens.fit(known, labels, classes)
    conditions = Conditions(keys, labels, keys, keys, known, means, names, fits=fits)
    plan = Plan(spec, labels, names)
    rows, facts = plan.rows(0, plan.count), plan.facts(0, plan.count, keys, keys)
    sampler: Any = None
    asked = Requests(spec, conditions).make(rows, facts, range(plan.count), rows.seed.tolist(), None, sampler)
    return np.stack([request.token for request in asked]).astype(np.float64), rows.label


def neighbourhoods(real: Array, made: Array) -> Array:
    """Precision, recall, density, coverage (4,) of `made` (m,D) against `real` (n,D): arXiv 2002.09797, equations 1 to
    6."""
    k = NEIGHBOURS
    real_radius = np.partition(cdist(real, real), k, axis=1)[:, k]
    made_radius = np.partition(cdist(made, made), k, axis=1)[:, k]
    apart = cdist(real, made)
    inside = apart < real_radius[:, None]
    covered = apart.min(axis=1) < real_radius
    recalled = (apart < made_radius[None, :]).any(axis=1)
    return np.array([inside.any(axis=0).mean(), recalled.mean(), inside.sum(axis=0).mean() / k, covered.mean()])


def energy(one: Array, other: Array) -> float:
    """The energy distance by its U-statistic, over the mean distance inside `one`."""
    n, m = len(one), len(other)
    inside, across = cdist(one, one).sum() / (n * (n - 1)), cdist(one, other).mean()
    return float((2 * across - inside - cdist(other, other).sum() / (m * (m - 1))) / inside)


def measured(made: Array, labels: Array, reference: Images, known: Array, near: float) -> dict[str, float]:
    """The figures of a set of tokens; `near` is the distance to a training image below which one counts as a copy."""
    real, truth = reference
    parts, energies = [], []
    for label in np.unique(truth):
        own, drawn_own = real[truth == label], made[labels == label]
        parts.append(neighbourhoods(own, drawn_own[: len(own)]))
        energies.append(energy(own, drawn_own))
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(made, labels)
    values = [*np.mean(parts, axis=0), np.mean(energies), (cdist(made, known).min(axis=1) < near).mean()]
    return dict(zip(METRICS, map(float, (*values, judge.score(real, truth))), strict=True))


def one_seed(name: str, images: Images, count: int, seed: int, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by encoder and source of one split and its networks."""
    order = np.random.default_rng(seed).permutation(len(images[1]))
    pixels, labels = images[0][order], images[1][order].astype(np.int64)
    train, held = slice(0, count), slice(count, None)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, known_by in encoders(name, (pixels[train], labels[train]), seed, quick):
        known, unseen, truth = known_by(pixels[train]), known_by(pixels[held]), labels[held]
        half = np.random.default_rng(seed).random(len(truth)) < 0.5
        reference, other = (unseen[half], truth[half]), (unseen[~half], truth[~half])
        near = float(np.quantile(cdist(other[0], known).min(axis=1), QUANTILE))
        knn = KNeighborsClassifier(1, metric="cosine").fit(known, labels[train]).score(unseen, truth)
        rows = {"held out": measured(*other, reference, known, near)}
        for source in SOURCES:
            made = drawn(source, known, labels[train].astype(np.int32), seed)
            rows[source] = measured(*made, reference, known, near)
        found[kind] = {source: {**row, "neighbour": float(knn)} for source, row in rows.items()}
    return found


def summary(case: str, seeds: list[dict[str, dict[str, dict[str, float]]]]) -> list[dict[str, Any]]:
    """A row for each encoder and source: mean, lowest and highest of each figure over the seeds."""
    rows = []
    for kind in seeds[0]:
        for source in seeds[0][kind]:
            row: dict[str, Any] = {"case": case, "encoder": kind, "source": source, "seeds": len(seeds)}
            for metric in (*METRICS, "neighbour"):
                values = [one[kind][source][metric] for one in seeds]
                row[metric] = round(statistics.mean(values), 4)
                row[f"{metric}_range"] = [round(min(values), 4), round(max(values), 4)]
            rows.append(row)
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [f"{'case':12} {'encoder':11} {'source':15} " + " ".join(f"{metric:>9}" for metric in METRICS) + "   1-NN"]
    for row in rows:
        figures = " ".join(f"{row[metric]:9.3f}" for metric in METRICS)
        lines.append(f"{row['case']:12} {row['encoder']:11} {row['source']:15} {figures}  {row['neighbour']:.3f}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = pairs.parser(__doc__, cases=CASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--cifar10", type=Path, help="CIFAR-10's training part as Parquet; without it that case is left out"
    )
    parser.add_argument("--held-out", type=int, default=2000, help="images of CIFAR-10 to compare with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.results or pairs.FOLDER / "token_sources.json"
    rows: list[dict[str, Any]] = (
        json.loads(path.read_text())["results"] if path.exists() and not arguments.quick else []
    )
    for case in CASES[:1] if arguments.quick else arguments.case or CASES:
        name, _, count = case.partition(" ")
        if name == "cifar10" and arguments.cifar10 is None:
            continue
        images = digits() if name == "digits" else cifar10(arguments.cifar10, int(count) + arguments.held_out)
        seeds = range(1 if arguments.quick else arguments.seeds)
        made = summary(case, [one_seed(name, images, int(count), seed, arguments.quick) for seed in seeds])
        rows = sorted([*(row for row in rows if row["case"] != case), *made], key=lambda row: CASES.index(row["case"]))
        if not arguments.quick:
            pairs.keep(path, {"machine": machine("token_sources --cifar10 train.parquet"), "results": rows})
    pairs.finish("token_sources", rows, arguments, machine("token_sources --cifar10 train.parquet"), text(rows))


if __name__ == "__main__":
    main()
