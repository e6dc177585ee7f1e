"""One GPU, 25 minutes: latent against pixel generators, copying against n, and matching, as a user would run them (make
gpu-study).

Every cell is a mimeo command on an output of its own below `--folder`: what is finished is not run again, what was cut
short goes on, so that the same command resumes the study. Parts:

- `cifar10`: 5,000 training images. A latent and a pixel generator of about 15 M weights, each trained for GENERATOR_S
  seconds (by a short timed training, whose number of steps is kept in the folder); 50,000 images each; ResNet-18 at
  fixed steps on real, synthetic (10x), mixed (10x) and duplicated; the judge with all controls and copy shares.
- `usps`: copy share and accuracy at 50, 100, 200 and 500 training images.
- `matching`: the latent generator with no matching term, `residual` and `kernel_latent`: KID of 5,000 images against
  held-out ones.

The criterion, fixed beforehand: mixed beats the best real or control arm by half a point of accuracy with a copy share
of at most 2 %. `--dry` runs everything on the CPU with digits and a few steps, to see that it works; its figures say
nothing.

    python -m benchmarks.gpu_study --data ../shared/data [--part cifar10] [--folder runs/gpu-study] [--dry]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RECIPES = Path(__file__).parent / "recipes"
RESULTS = Path(__file__).parent / "results"
GENERATOR_S = {"gpu": 240.0, "dry": 5.0}
TIMED_STEPS = {"gpu": 200, "dry": 4}
GAIN, COPIES = 0.005, 0.02
SIZES = (50, 100, 200, 500)
MATCHING: dict[str, dict[str, Any]] = {
    "none": {"match.mmd": "none"},
    "residual": {"match.mmd": "residual"},
    "kernel_latent": {"match.mmd": "kernel_latent", "match.mmd_weight": 1.0},
}
SPACES: dict[str, dict[str, Any]] = {
    "pixel": {
        "pretrain.space": "pixel",
        "pretrain.views.probability": 0.15,
        "pretrain.views.degrees": 180,
        "pretrain.views.mirror": True,
        "pretrain.pixel.blocks": [96, 192, 192],
        "pretrain.pixel.layers": 2,
        "pretrain.pixel.attention": [16, 8],
        "pretrain.pixel.dropout": 0.13,
        "pretrain.pixel.batch": 256,
        "pretrain.pixel.lr": 1e-3,
        "pretrain.pixel.dtype": "bfloat16",
        "generate.guidance": "auto",
        "generate.guidance_scale": 1.5,
    },
    "latent": {
        "pretrain.space": "latent",
        "pretrain.views.probability": 0.15,
        "pretrain.views.degrees": 180,
        "pretrain.views.mirror": True,
        "pretrain.vae": {"blocks": [64, 128], "layers": 2, "groups": 16, "steps": 6000, "batch": 64, "lr": 1e-3},
        "pretrain.unet": {"blocks": [96, 224], "layers": 2, "head_dim": 32, "batch": 256, "lr": 1e-3},
        "generate.guidance_scale": 2.0,
    },
}
# What --dry puts in the place of data, sizes and steps.
DRY: dict[str, Any] = {
    "source": {"kind": "digits"},
    "images.size": 8,
    "split": {"train": 40, "validation": 100, "test": 200},
    "pretrain.clip": {"hidden": 16, "heads": 2, "layers": 1, "steps": 2, "batch": 8},
    "generate.count": 80,
    "generate.shard_size": 40,
    "generate.num_inference_steps": 2,
    "judge": {"multiples": [1, 2], "steps": 4, "seeds": 2, "width": 4},
}
DRY_SPACES: dict[str, dict[str, Any]] = {
    "pixel": {"pretrain.pixel": {"blocks": [8, 16], "batch": 8}},
    "latent": {
        "pretrain.vae": {"blocks": [8, 8], "steps": 2, "batch": 8},
        "pretrain.unet": {"blocks": [16, 16], "head_dim": 8, "batch": 8},
    },
}


@dataclass(frozen=True)
class Cell:
    """One mimeo command: its result's file marks it as done."""

    name: str
    verb: str
    recipe: str
    changes: Mapping[str, Any]
    output: str
    result: str


@dataclass
class Study:
    """The cells of the study in order, where they lie, and what they took."""

    folder: Path
    data: Path
    dry: bool
    rows: dict[str, Any] = field(default_factory=dict)

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's result, run first where it is not there; the command's own output goes to the terminal."""
        path = self.folder / cell.output / cell.result
        if not path.exists():
            print(f"== {cell.name}: mimeo {cell.verb}", flush=True)
            began = time.monotonic()
            changes = [f"--set={key}={json.dumps(value)}" for key, value in cell.changes.items()]
            recipe = str(RECIPES / f"{cell.recipe}.yaml")
            output = str(self.folder / cell.output)
            subprocess.run(
                [sys.executable, "-m", "pipelines.cli", *cell.verb.split(), recipe, "--output", output, *changes],
                check=True,
            )
            self.rows.setdefault("seconds", {})[cell.name] = round(time.monotonic() - began, 1)
        return dict(json.loads(path.read_text()))

    def places(self, recipe: str) -> dict[str, Any]:
        """Where the images of a recipe lie, or what stands for them."""
        if self.dry:
            return DRY
        if recipe == "gpu_usps":
            return {"source.path": str(self.data / "usps" / "usps_all.mat")}
        from benchmarks.data.cifar10_duplicates import write_apart

        apart = self.folder / "cifar10-test.parquet"
        if not apart.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_apart(str(self.data / "cifar10" / "test.parquet"), str(apart))
        train = str(self.data / "cifar10" / "train.parquet")
        return {"source.path": train, "source.test_path": str(apart)}

    def steps(self, space: str, changes: Mapping[str, Any]) -> int:
        """Steps of a generator that take GENERATOR_S seconds here, by a short training; kept in the folder."""
        kept = self.folder / f"steps-{space}.json"
        part = "pixel" if space == "pixel" else "unet"
        way = "dry" if self.dry else "gpu"
        if not kept.exists():
            short = {**changes, f"pretrain.{part}.steps": TIMED_STEPS[way]}
            cell = Cell(f"{space}: timed", "pretrain", "gpu_cifar10", short, f"timed-{space}", "results/pretrain.json")
            stage = self.run(cell)["stages"][part]
            steps = max(TIMED_STEPS[way], round(GENERATOR_S[way] * stage["steps"] / stage["seconds"]))
            kept.write_text(json.dumps(min(steps, 8) if self.dry else steps))
        return int(json.loads(kept.read_text()))


def generator(study: Study, space: str) -> dict[str, Any]:
    """The settings of a space's generator, its steps among them."""
    changes = {**SPACES[space], **study.places("gpu_cifar10"), **(DRY_SPACES[space] if study.dry else {})}
    part = "pixel" if space == "pixel" else "unet"
    return {**changes, f"pretrain.{part}.steps": study.steps(space, changes)}


def cifar10(study: Study) -> None:
    """Latent against pixel, with controls and ResNet-18."""
    for space in SPACES:
        changes, output = generator(study, space), f"cifar10-{space}"
        judged = study.run(Cell(f"{space}: judge", "judge", "gpu_cifar10", changes, output, "results/judge.json"))
        study.rows[space] = {"judge": _arms(judged), "criterion": met(judged)}
        if not study.dry:  # which has its own recipe of classifiers
            trained = Cell(f"{space}: ResNet-18", "train", "gpu_cifar10", changes, output, "results/train.json")
            study.rows[space]["resnet18"] = study.run(trained)


def usps(study: Study) -> None:
    """Copying against the number of training images."""
    study.rows["usps"] = {}
    for size in SIZES[:1] if study.dry else SIZES:
        changes = {
            **study.places("gpu_usps"),
            **(DRY_SPACES["pixel"] | {"pretrain.pixel.steps": 4} if study.dry else {}),
        }
        changes |= {} if study.dry else {"split.train": size, "generate.count": 10 * size}
        cell = Cell(f"USPS, {size}", "judge", "gpu_usps", changes, f"usps-{size}", "results/judge.json")
        judged = study.run(cell)
        study.rows["usps"][size] = {"judge": _arms(judged), "criterion": met(judged)}


def matching(study: Study) -> None:
    """What the matching terms do to the latent generator."""
    study.rows["matching"] = {}
    base = generator(study, "latent")
    for kind, own in MATCHING.items():
        told = {"match.visual_token": "none", "match.batch": 64, "match.steps": 2 if study.dry else 500}
        small = {} if study.dry else {"generate.count": 5000, "judge.multiples": [1]}
        changes = {**base, **told, **own, **small, "worth.seeds": 1}
        cell = Cell(f"matching, {kind}", "study worth", "gpu_cifar10", changes, f"match-{kind}", "results/worth.json")
        found = study.run(cell)
        study.rows["matching"][kind] = {"fidelity": found["fidelity"], "arms": _means(found)}


def _arms(judged: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of each arm: mean, interval, ratio, copy shares."""
    out = {}
    for key, arm in judged["arms"].items():
        copies = arm.get("copies")
        shares = {space: copies[space]["share"] for space in ("pixels", "features")} if copies else None
        out[key] = {name: arm[name] for name in ("mean", "interval", "ratio")} | {"copy_share": shares}
    return out


def _means(found: Mapping[str, Any]) -> dict[str, float]:
    return {key: arm["mean"] for key, arm in found["arms"].items()}


def met(judged: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the best mixed arm beats the best real or control arm by half a point with a copy share of at most 2
    %."""
    arms = judged["arms"]
    alone = {key: arm["mean"] for key, arm in arms.items() if arm["kind"] not in ("synthetic", "mixed")}
    mixed = {key: arm for key, arm in arms.items() if arm["kind"] == "mixed"}
    best = max(mixed, key=lambda key: mixed[key]["mean"])
    share = max(mixed[best]["copies"][space]["share"] for space in ("pixels", "features"))
    gain = mixed[best]["mean"] - max(alone.values())
    return {"arm": best, "gain": gain, "copy_share": share, "met": gain >= GAIN and share <= COPIES}


PARTS = {"cifar10": cifar10, "usps": usps, "matching": matching}


def chosen(arguments: argparse.Namespace) -> Iterator[str]:
    """The parts that are asked for, in order."""
    yield from (name for name in PARTS if arguments.part in (None, name))


def main(argv: list[str] | None = None) -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_study")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu-study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args(argv)
    study = Study(arguments.folder.absolute(), arguments.data.absolute(), arguments.dry)
    study.folder.mkdir(parents=True, exist_ok=True)
    for name in chosen(arguments):
        PARTS[name](study)
        told = {
            "dry": arguments.dry,
            "machine": machine("gpu_study"),
            "criterion": {"gain": GAIN, "copy_share": COPIES},
            **study.rows,
        }
        out = arguments.results / ("gpu_study_dry.json" if arguments.dry else "gpu_study.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: value for key, value in study.rows.items() if key != "seconds"}, indent=1)[:4000])


if __name__ == "__main__":
    main()
