"""What the engine costs over a plain diffusers loop: images a second of both, in pairs, in one process (python -m
benchmarks.generation_overhead).

The engine's side is everything between two shards of a running job: waiting for the next one, planning, conditions,
sampling, gate, encoding, and the durable tar and its record, which a run makes beside the next shard's drawing and this
does in turn. The plain side is `pipeline(prompt=[...], generator=[...]).images`, nothing saved. A third side, "bare",
is the same pipeline from precomputed prompt embeddings to uint8 arrays, with no work on the host at all. All three run
in the actor's device thread, one after another, in turning order, with the same weights, batch size, steps and one
thread; starting Ray and loading models is in none of them. The worker keeps the memory that it frees, so the other two
sides do so too. Ratios are medians over pairs; the target is one of engine / bare, judged by half the 95 % interval of
that median as its noise.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import pairs as pairing
from benchmarks.machine import machine
from engine.cluster.session import session
from engine.generation import actor_pool
from engine.generation.actor import Order, ShardActor
from engine.generation.generation_worker import Shard
from engine.spec import RunSpec, validate
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import prepare

HALF_A_SECOND = 0.5
SIDES = ("engine", "plain", "bare")
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "family": "digits",
        "changes": {"unet": (64, 128), "head_dim": 16},
        "size": 8,
        "batch": 16,
        "batches": 8,
        "steps": 12,
        "target": 0.90,
    },
    "half a second": {
        "family": "sd15",
        "changes": {"unet": (64, 128, 128, 128), "clip": True},
        "size": 64,
        "batch": 8,
        "batches": 4,
        "steps": 0,
        "target": 0.97,
    },
}
QUICK = {"batches": 2, "steps": 2, "batch": 2}


class PairedActor(ShardActor):
    """Makes each shard, and draws as many images with stock diffusers beside it; writes the seconds of every side to a
    file."""

    def __init__(self, order: Order, board: Any = None) -> None:
        super().__init__(order, board)
        self._plain = stock_pipeline(order.checkpoint.path, self._worker.sampler)
        self._embeds: Any = None
        self._ended = time.perf_counter()

    def _draw(self, shard: Shard) -> None:
        k, seconds = shard.index, {"gap": time.perf_counter() - self._ended}

        def engine() -> None:
            ShardActor._draw(self, shard)
            self._worker.publish(shard)

        sides = {
            "engine": engine,
            "plain": lambda: self._loop(k, self._draw_plain),
            "bare": lambda: self._loop(k, self._draw_bare),
        }
        for name in SIDES if k % 2 else reversed(SIDES):
            began = time.perf_counter()
            sides[name]()
            seconds[name] = time.perf_counter() - began
        with Path(self._order.url, "seconds.jsonl").open("a") as out:
            out.write(json.dumps(seconds) + "\n")
        self._ended = time.perf_counter()

    def _loop(self, k: int, draw: Any) -> None:
        plan, size = self._worker.plan, self._worker.batch_size
        rows = plan.rows(*plan.shard(k))
        prompts = [self._worker.requests.conditions.prompts[anchor] for anchor in rows.anchor]
        for first in range(0, len(rows), size):
            draw(prompts[first : first + size], rows.seed[first : first + size].tolist())

    def _draw_plain(self, prompts: list[str], seeds: list[int]) -> None:
        self._plain(prompt=prompts, **self._settings(seeds))

    def _draw_bare(self, prompts: list[str], seeds: list[int]) -> None:
        import torch

        with torch.inference_mode():
            if self._embeds is None:
                self._embeds = self._plain.encode_prompt(prompts, "cpu", 1, True)
            embeds, negative = self._embeds
            latents = self._plain(
                prompt_embeds=embeds, negative_prompt_embeds=negative, output_type="latent", **self._settings(seeds)
            ).images
            pixels = self._plain.vae.decode(latents / self._plain.vae.config.scaling_factor).sample
            (pixels * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def _settings(self, seeds: list[int]) -> dict[str, Any]:
        import torch

        generate = self._order.spec.generate
        return {
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "num_inference_steps": generate.num_inference_steps,
            "guidance_scale": generate.guidance_scale,
        }


def stock_pipeline(folder: Path, sampler: Any) -> Any:
    """The checkpoint as a user of diffusers opens it, with the scheduler that the engine uses."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, image_encoder=None
    )
    pipeline.scheduler = type(sampler.pipeline.scheduler).from_config(sampler.pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_spec(case: dict[str, Any], checkpoint: Path, pairs: int) -> RunSpec:
    """A run of one actor with a shard for each pair, and one to warm up."""
    shard = case["batch"] * case["batches"]
    return validate(
        {
            "name": "overhead",
            "source": {"kind": "digits"},
            "images": {"size": case["size"]},
            "split": {"train": 100, "validation": 0, "test": 100},
            "model": {"checkpoint": str(checkpoint)},
            "conditions": {"prompt": "photo of digit {class}"},
            "generate": {"count": shard * (pairs + 1), "shard_size": shard, "num_inference_steps": case["steps"]},
            "resources": {"device": "cpu", "actors": 1, "batch_size": case["batch"], "threads": 1},
        }
    )


def steps_for_half_a_second(checkpoint: Path, case: dict[str, Any]) -> int:
    """Denoising steps that make one batch of the plain loop last about half a second on this machine."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, feature_extractor=None, image_encoder=None
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    seconds = {}
    for steps in (2, 2, 6):
        began = time.perf_counter()
        pipeline(prompt=["photo"] * case["batch"], num_inference_steps=steps, guidance_scale=2.0)
        seconds[steps] = time.perf_counter() - began
    step = (seconds[6] - seconds[2]) / 4
    return max(2, round(2 + (HALF_A_SECOND - seconds[2]) / step))


def measure(name: str, case: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Run one case, inside a session, and work out its ratios."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as place:
        folder = Path(place)
        checkpoint = write_checkpoint(folder / "model", case["family"], **case["changes"])
        settings = {**case, "steps": case["steps"] or steps_for_half_a_second(checkpoint, case)}
        output = prepare(folder / "out", make_spec(settings, checkpoint, pairs))
        with mock.patch.object(actor_pool, "ShardActor", PairedActor):
            output.generate()
        lines = (folder / "out" / "seconds.jsonl").read_text().splitlines()
    return {"case": name, **results(settings, [json.loads(line) for line in lines][1:])}


def results(case: dict[str, Any], seconds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over pairs; "spread" is how far plain shards differ from the next plain ones, the noise of a single
    pair."""
    images = case["batch"] * case["batches"]
    engine = [pair["engine"] + pair["gap"] for pair in seconds]
    plain, bare = ([pair[side] for pair in seconds] for side in ("plain", "bare"))
    ratio_to_bare, (low, high) = pairing.ratio(bare, engine), pairing.interval(bare, engine)
    return {
        "batch": case["batch"],
        "steps": case["steps"],
        "pairs": len(seconds),
        "seconds_a_batch": statistics.median(plain) / case["batches"],
        "engine_images_per_s": images / statistics.median(engine),
        "plain_images_per_s": images / statistics.median(plain),
        "ratio": pairing.ratio(plain, engine),
        "ratio_to_bare": ratio_to_bare,
        "interval_to_bare": [low, high],
        "gap_ms": 1e3 * statistics.median(pair["gap"] for pair in seconds),
        "spread": pairing.spread(plain),
        "target": case["target"],
        "verdict": pairing.verdict(ratio_to_bare, (high - low) / 2, case["target"]),
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as text."""
    head = (
        f"{'case':14} {'batch':>5} {'s/batch':>8} {'engine/s':>9} {'plain/s':>8} "
        f"{'/ plain':>7} {'/ bare':>7} {'95 %':>12} {'target':>6} {'gap ms':>6}  verdict"
    )
    return "\n".join(
        [
            head,
            *(
                f"{row['case']:14} {row['batch']:5d} {row['seconds_a_batch']:8.3f} {row['engine_images_per_s']:9.1f} "
                f"{row['plain_images_per_s']:8.1f} {row['ratio']:7.3f} {row['ratio_to_bare']:7.3f} "
                f"{'{:.3f}-{:.3f}'.format(*row['interval_to_bare']):>12} {row['target']:6.2f} "
                f"{row['gap_ms']:6.1f}  {row['verdict']}"
                for row in rows
            ),
        ]
    )


def main() -> None:
    """Measure every case, print a table, write the JSON; exit status 1 where a target was missed."""
    arguments = pairing.parser(__doc__, pairs=24, cases=CASES).parse_args()
    count, changes = (2, QUICK) if arguments.quick else (arguments.pairs, {})
    chosen = {name: CASES[name] | changes for name in arguments.case or CASES}
    any_case = next(iter(chosen.values()))
    with session(make_spec({**any_case, "steps": 1}, Path("/none"), 1).resources):
        rows = [measure(name, case, count) for name, case in chosen.items()]
        facts = machine("generation_overhead")
    pairing.finish("generation_overhead", rows, arguments, facts, table(rows))


if __name__ == "__main__":
    main()
