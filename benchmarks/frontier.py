"""The frontier between copying and worth: one training of the pixel generator, looked at again and again on its way.

    python -m benchmarks.frontier [digits] [--n 100] [--steps 3000] [--views 0,0.5] [--path FILE] [--seeds 1]

For each probability of views a generator is trained on n images, and its averaged weights at eight lengths draw 10 n
images each, with autoguidance. Beside each other stand the copy share (pixels), the membership attack, and the accuracy
of judges that were trained on the synthetic images alone, as a ratio to that of real ones; held-out loss says which
length the engine would have chosen. Every (views, seed) is published on its own, so that the command goes on. Writes
benchmarks/results/frontier_NAME.json and .svg.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from engine.diffusion.families.pixel import Pixel
from engine.diffusion.sampler import Request, Sampler
from engine.evaluation.copies import measure
from engine.evaluation.nearest import PixelSpace
from engine.images import catalog as catalogs
from engine.images.image_reader import Reader
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, judge_one
from engine.training.loop import Loop
from engine.training.pretrain import heldout
from engine.training.pretrain.pixel_stage import PixelStage, build_cache
from engine.training.pretrain.pretrain_stage import Setting, TrainingSet
from engine.training.pretrain.views import Views
from engine.training.setup import Place

RESULTS = Path(__file__).parent / "results"
SIDES = {"digits": 8, "usps": 16}
TIMES, JUDGES, BATCH, SCALE = 10, 3, 250, 2.0
CPU = torch.device("cpu")


def recipe(arguments: argparse.Namespace, views: float, seed: int) -> RunSpec:
    """The recipe of one training."""
    source = {"kind": arguments.name} | ({"path": arguments.path} if arguments.path else {})
    return validate(
        {
            "name": f"frontier-{arguments.name}",
            "seed": seed,
            "source": source,
            "images": {"size": SIDES[arguments.name]},
            "split": {"train": arguments.n, "validation": 400, "test": 899 if arguments.name == "digits" else 3000},
            "pretrain": {"views": {"probability": views}, "pixel": {"steps": arguments.steps}},
            "generate": {"num_inference_steps": 10, "guidance_scale": SCALE},
            "judge": {"multiples": [TIMES], "seeds": JUDGES},
        }
    )


def images(spec: RunSpec, folder: Path) -> dict[str, Arrays]:
    """The splits as arrays; the seed of the split is 0 whatever the generator's."""
    from engine.cluster.progress import PlainReporter

    catalog = catalogs.build(spec.model_copy(update={"seed": 0}), open_store(str(folder)), PlainReporter())
    out = {}
    for split in ("train", "validation", "test"):
        rows = catalog.split(split)
        labels = np.asarray(rows["label"].to_numpy(), np.int64)
        out[split] = Arrays(Reader(spec).pixels(rows), labels, np.arange(len(labels)))
    return out


def train(spec: RunSpec, given: Arrays) -> tuple[PixelStage, list[dict[str, float]]]:
    """A trained stage, and its losses at the snapshots."""
    names = tuple(str(label) for label in range(10))
    own = TrainingSet(
        torch.from_numpy(given.pixels), torch.from_numpy(given.labels), ("",) * len(given.labels), names, names
    )
    kept, held = heldout.split(given.labels, spec.pretrain.held_out, spec.seed)
    views = Views(spec.pretrain.views) if spec.pretrain.views.probability else None
    setting = Setting(spec, Place(0, 1, CPU), own.take(kept), lambda pixels, _: pixels, views, own.take(held))
    unseen = Setting(spec, Place(0, 1, CPU), own.take(held), lambda pixels, _: pixels)
    cache, _ = build_cache(setting, None, None, None)  # type: ignore[arg-type]
    held_cache, _ = build_cache(unseen, None, None, None)  # type: ignore[arg-type]
    stage = PixelStage(setting, cache)
    done = Loop(stage, setting.place).run(
        checkpoint_every=10**9,
        save=lambda: None,
        out_of_time=lambda: False,
        tell=lambda step, loss: print(step, loss, flush=True) if step % 200 == 0 else None,
    )
    assert done
    found = stage.finish(held_cache)
    assert found is not None
    keys = zip(found["step"], found["train"], found["held"], strict=True)
    return stage, [{"step": step, "train": seen, "held": new} for step, seen, new in keys]


def draw(spec: RunSpec, stage: PixelStage, step: int, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """So many images (N, H, W, 3) uint8 by the weights averaged up to a step."""
    module = copy.deepcopy(stage.module)
    stage.ema.put(module.parameters(), step, 0.1)
    unet: Any = getattr(module, "model", module)
    pipeline = Pixel().build({"unet": unet.eval(), "scheduler": stage.scheduler, "guide": stage.guide})
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(pipeline, spec.generate)
    out: list[Any] = []
    for first in range(0, len(labels), BATCH):
        asked = [Request("", first + k, label=int(label)) for k, label in enumerate(labels[first : first + BATCH])]
        out += [drawn.pixels for drawn in sampler.draw(asked)]
    return np.stack(out)


def cell(arguments: argparse.Namespace, views: float, seed: int, folder: Path) -> dict[str, Any]:
    """One training, looked at at each of its snapshots."""
    spec = recipe(arguments, views, seed)
    given = images(spec, folder / "catalog")
    stage, losses = train(spec, given["train"])
    n = len(given["train"].labels)
    labels = np.tile(given["train"].labels, TIMES)
    base = Data(given["train"], given["test"], None, n, 10)
    real = [judge_one(Arm("real"), k, spec.judge, base).accuracy for k in range(JUDGES)]
    points = []
    for told in losses:
        pixels = draw(spec, stage, int(told["step"]), labels)
        data = Data(given["train"], given["test"], Arrays(pixels, labels, np.arange(len(labels))), n, 10)
        own = [judge_one(Arm("synthetic", TIMES), k, spec.judge, data).accuracy for k in range(JUDGES)]
        found = measure(PixelSpace(True), pixels, given["train"].pixels, given["validation"].pixels, [len(labels)])
        copies = {key: found.prefix(0, len(labels))[key] for key in ("share", "auc", "median")}
        points.append(told | copies | {"accuracy": float(np.mean(own)), "ratio": float(np.mean(own) / np.mean(real))})
        print(views, points[-1], flush=True)
    return {
        "case": f"{arguments.name}, n = {n}, views {views:g}",
        "views": views,
        "seed": seed,
        "n": n,
        "real": float(np.mean(real)),
        "points": points,
    }


def figure(cells: list[dict[str, Any]], path: Path, title: str) -> None:
    """Ratio against copy share, a line a training; the largest dot is the length that held-out images choose."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.subplots()
    for one in cells:
        shares = [100 * point["share"] for point in one["points"]]
        ratios = [point["ratio"] for point in one["points"]]
        best = int(np.argmin([point["held"] for point in one["points"]]))
        (line,) = axes.plot(shares, ratios, marker=".", label=f"views {one['views']:g}, seed {one['seed']}")
        axes.plot(shares[best], ratios[best], marker="o", markersize=9, color=line.get_color())
    axes.set_xlabel("copy share, % of synthetic images (pixels)")
    axes.set_ylabel("accuracy, synthetic alone, ratio to real")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    drawn.savefig(path)


def main(argv: list[str] | None = None) -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="benchmarks.frontier")
    parser.add_argument("name", choices=SIDES, nargs="?", default="digits")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--views", default="0,0.5")
    parser.add_argument("--path")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/frontier"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = arguments.folder / f"{arguments.name}-{arguments.n}-{arguments.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for views in map(float, arguments.views.split(",")):
        for seed in range(arguments.seeds):
            path = folder / f"views-{views:g}-seed-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(cell(arguments, views, seed, folder)))
            cells.append(json.loads(path.read_text()))
    told = {"n": arguments.n, "steps": arguments.steps, "results": cells, "machine": machine("frontier")}
    out = RESULTS / f"frontier_{arguments.name}.json"
    out.write_text(json.dumps(told, indent=1) + "\n")
    figure(
        cells,
        out.with_suffix(".svg"),
        f"{arguments.name}, n = {arguments.n}: {TIMES}x synthetic alone, eight lengths of one training",
    )


if __name__ == "__main__":
    main()
