"""The engine against the Real-Fake script on one GPU, Stable Diffusion 1.5 of real shape, images durable on disk.

The engine's side is its worker (plan, requests, sampler, gate, encoder thread, tar with fsync, record) in this process,
without Ray; the script's is `benchmarks.peers.save_all`, with `enable_model_cpu_offload()` as released, and without.
"engine fast" has channels_last and a compiled U-Net, whose compiling is given apart. Both sides read JPEG files of 500
x 375 where they start from images, and both VAEs answer with photographs, so that codecs work on pictures.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpumodels
from benchmarks.pairs import verdict
from benchmarks.peers import Item, Work, draw, save_all
from benchmarks.photographs import develop, write_folder

CLASSES = ("class0", "class1")
TARGETS = {("engine", "script offload"): 1.25, ("engine fast", "script offload"): 2.0}
WORKLOADS: dict[str, dict[str, Any]] = {
    "img2img as released": {"steps": 30, "guidance_scale": 2.0, "strength": 0.75, "format": "jpg"},
    "text to image": {"steps": 20, "guidance_scale": 2.0, "strength": 1.0, "format": "jpg"},
    "four steps, jpg": {"steps": 4, "guidance_scale": 1.0, "strength": 1.0, "format": "jpg"},
    "four steps, png": {"steps": 4, "guidance_scale": 1.0, "strength": 1.0, "format": "png"},
}


def make_spec(workload: dict[str, Any], size: int, batch: int, shards: int, batches: int, real: Path) -> Any:
    """The run whose worker is measured; its source is the folder of JPEG files."""
    from engine.spec import validate

    return validate(
        {
            "name": "gpu",
            "source": {"kind": "folder", "path": str(real)},
            "images": {"size": size},
            "generate": {
                "count": shards * batches * batch,
                "shard_size": batches * batch,
                "scheduler": "unipc",
                "num_inference_steps": workload["steps"],
                "guidance_scale": workload["guidance_scale"],
                "strength": workload["strength"],
                "pairing": "own" if workload["strength"] < 1 else "none",
                "visual_token": "none",
                "format": workload["format"],
                "quality": 75,
            },
            "resources": {"batch_size": batch},
        }
    )


class Bench:
    """Everything that the sides share: real images, their conditions, and a pipeline for each side that is on the
    device."""

    def __init__(self, device: str, tiny: bool, folder: Path) -> None:
        self.device, self.tiny, self.folder = device, tiny, folder
        self.size = gpumodels.shape("sd15", tiny).size
        self.batch, self.batches, self.shards = (2, 2, 2) if tiny else (24, 2, 2)
        self.dtype = "float32" if device == "cpu" else "float16"
        self.real = write_folder(folder / "real", 8 if tiny else 96)
        self.paths = sorted(self.real.rglob("*.jpg"))
        self.notes: dict[str, Any] = {}
        self._pipelines = {"engine": self._pipeline(), "script": self._pipeline()}
        if not tiny:
            self._pipelines["engine fast"] = self._fast()
        if device != "cpu":
            self._offloaded()

    def sides(self, workload: dict[str, Any]) -> dict[str, Callable[[Path], float]]:
        """What is run for a workload, by name; each takes a new folder and returns seconds."""
        found: dict[str, Callable[[Path], float]] = {
            name: self._engine(workload, name) for name in ("engine", "engine fast") if name in self._pipelines
        }
        for name in ("script", "script offload"):
            if name in self._pipelines:
                found[name] = self._script(workload, name)
        return found

    @property
    def images(self) -> int:
        """Images of one run of a side."""
        return self.batch * self.batches * self.shards

    def _pipeline(self) -> Any:
        made = gpumodels.pipeline("sd15", self.device, self.dtype, self.tiny)
        develop(made.vae, self.size)
        return made

    def _fast(self) -> Any:
        import torch

        made = self._pipeline()
        made.unet.to(memory_format=torch.channels_last)
        made.vae.to(memory_format=torch.channels_last)
        made.unet.compile()
        return made

    def _offloaded(self) -> None:
        try:
            made = self._pipeline()
            made.enable_model_cpu_offload()
            self._pipelines["script offload"] = made
        except ImportError as error:  # it needs accelerate
            self.notes["script offload"] = f"left out: {error}"

    def _worker(self, workload: dict[str, Any], name: str, folder: Path) -> Any:
        from engine.conditions.table import Conditions
        from engine.diffusion.sampler import Sampler
        from engine.generation.generation_worker import ShardWorker
        from engine.generation.requests import Requests
        from engine.generation.sample_plan import Plan
        from engine.shards.names import PlanFacts
        from engine.spec import spec_hash
        from engine.storage.store import open_store

        spec = make_spec(workload, self.size, self.batch, self.shards, self.batches, self.real)
        names = tuple(path.name for path in self.paths)
        labels = np.array([CLASSES.index(path.parent.name) for path in self.paths], np.int32)
        prompts = tuple(f"photo of {path.parent.name}" for path in self.paths)
        empty = np.zeros((len(names), 0), np.float32)
        conditions = Conditions(names, labels, prompts, prompts, empty, np.zeros((2, 0), np.float32), CLASSES)
        return ShardWorker(
            spec,
            open_store(str(folder)),
            Plan(spec, labels, CLASSES),
            Requests(spec, conditions, lambda rows: self._read(spec, rows)),
            Sampler(self._pipelines[name], spec.generate),
            batch_size=self.batch,
            plan_facts=PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec)),
            provenance={},
            device=self.device,
        )

    def _read(self, spec: Any, rows: Any) -> Any:
        from engine.images.decode import decode, fit

        files = [self.paths[row].read_bytes() for row in rows]
        return np.stack([fit(decode(data, spec.images).pixels, spec.images) for data in files])

    def _engine(self, workload: dict[str, Any], name: str) -> Callable[[Path], float]:
        def run(folder: Path) -> float:
            worker = self._worker(workload, name, folder)
            began = time.perf_counter()
            for k in range(self.shards):
                assert not worker.make(k).quarantined, "images were quarantined"
            return time.perf_counter() - began

        return run

    def _script(self, workload: dict[str, Any], name: str) -> Callable[[Path], float]:
        from diffusers import StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler

        pipeline = self._pipelines[name]
        if workload["strength"] < 1:
            extra = {"requires_safety_checker": False}
            pipeline = StableDiffusionImg2ImgPipeline(**pipeline.components, **extra)
            if name == "script offload":
                pipeline.enable_model_cpu_offload()
        pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        told = (workload["steps"], workload["guidance_scale"], workload["strength"], self.size, self.batch)
        work = Work("", "unipc", *told, workload["format"], True)
        paths = itertools.cycle(self.paths)
        items = [
            Item(f"photo of {p.parent.name}", n, 0, str(p)) for n, p in zip(range(self.images), paths, strict=False)
        ]

        def run(folder: Path) -> float:
            folder.mkdir()
            return save_all(pipeline, work, str(folder), items, workload["format"])

        draw(pipeline, work, items[: self.batch])
        return run


def part_scripts(device: str, tiny: bool, rounds: int = 3) -> dict[str, Any]:
    """Every workload, every side in turning order; ratios of the engine's sides to the script's."""
    rows: list[dict[str, Any]] = []
    rounds = 1 if tiny else rounds
    with tempfile.TemporaryDirectory(prefix="gpu-") as place:
        bench = Bench(device, tiny, Path(place))
        for number, (name, workload) in enumerate(WORKLOADS.items()):
            workload = workload | {"steps": 4 if tiny else workload["steps"]}
            sides = bench.sides(workload)
            warm = {side: run(Path(place, f"warm{number}-{side}")) for side, run in sides.items()}
            seconds: list[dict[str, float]] = []
            for turn in range(rounds):
                order = list(sides) if turn % 2 else list(reversed(sides))
                seconds.append({side: sides[side](Path(place, f"{number}-{turn}-{side}")) for side in order})
                print(f"{name}: {seconds[-1]}", file=sys.stderr, flush=True)
            rows += compare(name, bench.images, seconds)
            bench.notes[name] = {"seconds of the first run, compiling included": warm}
    return {"batch": bench.batch, "dtype": bench.dtype, "notes": bench.notes, "results": rows}


def compare(name: str, images: int, seconds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each of the engine's sides and each of the script's."""
    rows = []
    for ours, theirs in itertools.product(("engine", "engine fast"), ("script", "script offload")):
        if ours not in seconds[0] or theirs not in seconds[0]:
            continue
        ratio = statistics.median(one[theirs] / one[ours] for one in seconds)
        spreads = [abs(b[theirs] / a[theirs] - 1) for a, b in itertools.pairwise(seconds)]
        spread = statistics.median(spreads) if spreads else 1.0
        target = TARGETS.get((ours, theirs)) if name.startswith("img2img") else None
        row = {"workload": name, "side": ours, "peer": theirs, "ratio": ratio, "spread": spread, "target": target}
        row |= {side + " images/s": images / statistics.median(one[side] for one in seconds) for side in (ours, theirs)}
        row["verdict"] = "no target" if target is None else verdict(ratio, spread, target)
        rows.append(row)
    return rows
