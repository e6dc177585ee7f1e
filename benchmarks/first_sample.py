"""Seconds from a command's start to the first image that is durable on disk, engine and scripts (python -m
benchmarks.first_sample).

Every start is a fresh process, with the same checkpoint, batch, steps and one thread for the model. "engine" is `mimeo
generate` whose catalog and conditions are there already: imports, Ray, an actor, the checkpoint, one batch, its shard
and record. "script" imports diffusers, loads the checkpoint, draws one batch and saves a file an image. "ray script"
does so in an actor of a Ray that it starts first, which is the least that anything on Ray takes. Sides follow each
other in turning order.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import pairs
from benchmarks.generation_overhead import CASES, make_spec
from benchmarks.peers import Item, Work, draw, open_pipeline
from engine.spec import RunSpec
from engine.storage.claim import to_yaml

ROOT = Path(__file__).parents[1]
OVER_SCRIPT, BEYOND_RAY_S = 1.2, 3.0


def script(order: str) -> float:
    """Load, draw one batch, save a file an image; the time of the last file, in seconds since the epoch."""
    import torch

    told = json.loads(Path(order).read_text())
    work, folder = Work(**told["work"]), Path(told["folder"])
    torch.manual_seed(0)
    items = [Item("photo of digit 3", seed, 3) for seed in range(work.batch)]
    for number, image in enumerate(draw(open_pipeline(work), work, items)):
        image.save(folder / f"{number:06d}.jpg")
    return time.time()


def ray_script(order: str) -> float:
    """The script in an actor of a Ray of its own."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1)(script).options(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        return float(ray.get(task.remote(order)))
    finally:
        ray.shutdown()


class Starts:
    """Starts every side anew and reads when its first image was there."""

    def __init__(self, folder: Path, spec: RunSpec, checkpoint: Path) -> None:
        generate, size, batch = spec.generate, spec.images.size, int(spec.resources.batch_size)
        drawing = (generate.scheduler, generate.num_inference_steps, generate.guidance_scale, generate.strength)
        work = Work(str(checkpoint), *drawing, size, batch, "jpg", photographs=False)
        self._folder, self._recipe, self._order = folder, folder / "recipe.yaml", folder / "order.json"
        self._recipe.write_text(to_yaml(spec))
        (folder / "images").mkdir()
        self._order.write_text(json.dumps({"work": asdict(work), "folder": str(folder / "images")}))

    def script(self) -> float:
        """Seconds of the script."""
        return self._scripted("script")

    def ray_script(self) -> float:
        """Seconds of the script inside Ray."""
        return self._scripted("ray_script")

    def engine(self) -> float:
        """Seconds of `mimeo generate` in a copy of the prepared output, up to the first record."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            out = Path(place, "out")
            subprocess.run(["cp", "-r", self._folder / "out", out], check=True)
            began = time.time()
            self._run("mimeo", "-c", self._verb(out))
            finished = [json.loads(path.read_text())["finished"] for path in out.glob("data/*-*.json")]
        return float(min(finished)) - began

    def _verb(self, out: Path) -> str:
        asked = ["generate", str(self._recipe), "--output", str(out)]
        return f"import sys; from pipelines.cli import execute; sys.exit(execute({asked!r}))"

    def _scripted(self, name: str) -> float:
        began = time.time()
        said = self._run(name, "-m", "benchmarks.first_sample", "--child", name, str(self._order))
        return float(said.splitlines()[-1]) - began

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def results(seconds: dict[str, list[float]]) -> list[pairs.Row]:
    """What the engine takes over the script, and beyond the script inside Ray."""
    noise = pairs.spread(seconds["engine"])
    rows = [
        pairs.judged(side, "seconds to the first image", statistics.median(taken), pairs.spread(taken), None)
        for side, taken in seconds.items()
    ]
    ratio = pairs.ratio(seconds["engine"], seconds["script"])
    rows.append(pairs.judged("engine", "times the script", ratio, noise, OVER_SCRIPT, at_most=True, seconds=seconds))
    beyond = statistics.median(a - b for a, b in zip(seconds["engine"], seconds["ray script"], strict=True))
    share = noise * statistics.median(seconds["engine"]) / (abs(beyond) or 1.0)
    rows.append(pairs.judged("engine", "seconds beyond ray script", beyond, share, BEYOND_RAY_S, at_most=True))
    return rows


def main() -> None:
    """Measure, print the table, write the JSON; exit status 1 where a target was missed."""
    if sys.argv[1:2] == ["--child"]:
        print({"script": script, "ray_script": ray_script}[sys.argv[2]](sys.argv[3]))
        sys.exit()
    from engine.cluster.session import session
    from tests.support.checkpoints import write_checkpoint
    from tests.support.outputs import prepare

    arguments = pairs.parser(__doc__, pairs=7).parse_args()
    case = {**CASES["digits"], "batches": 1}
    with tempfile.TemporaryDirectory(prefix="first-") as place:
        folder = Path(place)
        checkpoint = write_checkpoint(folder / "model", case["family"], **case["changes"])
        spec = make_spec(case, checkpoint, 1)
        with session(spec.resources):
            prepare(folder / "out", spec)
        starts = Starts(folder, spec, checkpoint)
        sides = {"engine": starts.engine, "script": starts.script, "ray script": starts.ray_script}
        count, warm = (1, 0) if arguments.quick else (arguments.pairs, 1)
        rows = results(pairs.alternate(sides, count, warm))
    pairs.finish("first_sample", rows, arguments)


if __name__ == "__main__":
    main()
