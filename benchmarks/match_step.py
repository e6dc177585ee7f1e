"""Images a second of the LoRA fine-tune: inputs computed once, live, and diffusers' own training loop (python -m
benchmarks.match_step).

All train the same LoRA (rank 4 on attention) of the same random-weight checkpoint on the same images, one after another
in turning order, in one process: "cached" is the engine from precomputed latents and prompts, "live" the engine
encoding every batch anew, "plain" the cached one without the MMD term, "diffusers" the loop of diffusers'
train_text_to_image_lora.py (encode the batch with VAE and text encoder, noise, U-Net, min-SNR loss, clip, AdamW),
written here without its accelerate wrapping. Loading models, and the one-off cost of the cache, are in none; the latter
is given apart. Ratios are medians over rounds. On a GPU (`--case sd15`) the checkpoint has Stable Diffusion 1.5's
sizes, 512 pixels and bfloat16, and the peak memory of each side is read.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import pairs
from engine.cluster.session import session
from engine.spec import RunSpec, validate
from engine.spec.recipe import ResourcesSpec
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import Output, prepare

SD15 = {
    "width": 768,
    "text_layers": 12,
    "text_heads": 12,
    "unet": (320, 640, 1280, 1280),
    "layers": 2,
    "head_dim": 8,
    "vae": (128, 256, 512, 512),
    "groups": 32,
    "sample": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "digits": {"family": "digits", "changes": {"unet": (64, 128), "head_dim": 16}, "size": 8, "batch": 64, "steps": 8},
    "small sd": {"family": "sd15", "changes": {"unet": (64, 128, 128, 128)}, "size": 64, "batch": 8, "steps": 4},
    "sd15": {"family": "sd15", "changes": SD15, "size": 512, "batch": 8, "steps": 10, "dtype": "bfloat16"},
}
QUICK = {"steps": 2}


def make_spec(case: dict[str, Any], checkpoint: Path) -> RunSpec:
    """The released fine-tune (rank 4, attention, residual MMD) on 100 digits enlarged to the checkpoint's size."""
    return validate(
        {
            "name": "match-step",
            "source": {"kind": "digits"},
            "images": {"size": case["size"]},
            "split": {"train": 100, "validation": 0, "test": 100},
            "model": {"checkpoint": str(checkpoint)},
            "conditions": {"prompt": "photo of digit {class}"},
            "generate": {"visual_token": "none"},
            "match": {
                "visual_token": "none",
                "steps": case["steps"],
                "batch": case["batch"],
                "samples": 0,
                "dtype": case.get("dtype", "float32"),
            },
        }
    )


class Engine:
    """The engine's loop over `steps` steps; the next call goes on with the same weights."""

    def __init__(self, output: Output, device: str, cached: bool, **changes: Any) -> None:
        import torch

        from engine.storage.store import open_store
        from engine.training.loop import Loop
        from engine.training.matching import data
        from engine.training.matching.matching_job import Job
        from engine.training.matching.matching_worker import Matching
        from engine.training.setup import Place

        rows = output.catalog.split("train")
        inputs = None
        if cached:
            assert output.spec.match is not None
            pipeline = data.pipeline_of(output.checkpoint, device, output.spec.match)
            began = time.perf_counter()
            inputs = data.computed(output.spec, rows, output.conditions, data.Encoding(pipeline, flip=False), None)
            self.seconds_of_cache = time.perf_counter() - began
        spec = output.spec
        assert spec.match is not None
        match = spec.match.model_copy(update={"precompute": cached, **changes})
        job = Job(spec.model_copy(update={"match": match}), open_store(output.store.url), output.checkpoint, {})
        place = Place(0, 1, torch.device(device))
        self._matching = Matching(job, place, rows, output.conditions, inputs)
        self._loop: Callable[[], Loop] = lambda: Loop(self._matching.stage, place)

    def __call__(self) -> None:
        self._loop().run(
            checkpoint_every=10**9,
            save=lambda: None,
            out_of_time=lambda: False,
            tell=lambda step, loss: None,
        )


class Diffusers:
    """The plain loop: everything encoded in every step, in the precision of the fine-tune."""

    def __init__(self, output: Output, device: str) -> None:
        import torch
        from diffusers import DDPMScheduler, StableDiffusionPipeline
        from peft import LoraConfig

        from engine.images.image_reader import Reader

        match = output.spec.match
        assert match is not None
        self._match, self._device, self._dtype = match, device, getattr(torch, match.dtype)
        pipeline = StableDiffusionPipeline.from_pretrained(output.checkpoint.path, safety_checker=None)
        pipeline.to(device, self._dtype)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        names = ["to_k", "to_q", "to_v", "to_out.0"]
        pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=names))
        self._trained = [p for p in pipeline.unet.parameters() if p.requires_grad]
        for parameter in self._trained:
            parameter.data = parameter.data.float()
        self._pipeline = pipeline
        self._scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=1e-2, fused=True)
        self._pixels = torch.from_numpy(Reader(output.spec).pixels(output.catalog.split("train")))
        self._prompts = output.conditions.prompts
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        for _ in range(self._match.steps):
            self._step()

    def _step(self) -> None:
        import torch
        from diffusers.training_utils import compute_snr

        pipeline, device, scheduler = self._pipeline, self._device, self._scheduler
        rows = torch.randint(len(self._pixels), (self._match.batch,), generator=self._generator)
        pixels = (self._pixels[rows].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).to(self._dtype)
        prompts = [self._prompts[row] for row in rows.tolist()]
        tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            latents = pipeline.vae.encode(pixels).latent_dist.sample() * pipeline.vae.config.scaling_factor
            states = pipeline.text_encoder(tokens.to(device))[0]
        noise = torch.randn_like(latents)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), device=device)
        noisy = scheduler.add_noise(latents, noise, times)
        with torch.autocast(torch.device(device).type, self._dtype, enabled=self._dtype != torch.float32):
            predicted = pipeline.unet(noisy, times, states).sample
        snr = compute_snr(scheduler, times)
        errors = (predicted.float() - noise.float()).square().mean(dim=(1, 2, 3))
        (errors * snr.clamp(max=5.0) / snr).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def measure(name: str, case: dict[str, Any], rounds: int, device: str) -> dict[str, Any]:
    """All sides of one case, in turning order, after a round to warm up."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="match-step-") as place:
        folder = Path(place)
        checkpoint = write_checkpoint(folder / "model", case["family"], **case["changes"])
        output = prepare(folder / "out", make_spec(case, checkpoint))
        cached = Engine(output, device, cached=True)
        sides: dict[str, Callable[[], None]] = {
            "cached": cached,
            "live": Engine(output, device, cached=False),
            "plain": Engine(output, device, cached=True, mmd="none"),
            "diffusers": Diffusers(output, device),
        }
        taken = pairs.alternate({side: partial(timed, run, device) for side, run in sides.items()}, rounds)
    seconds = {side: [wall for wall, _ in costs] for side, costs in taken.items()}
    memory = {side: max(peak for _, peak in costs) for side, costs in taken.items()}
    images = case["batch"] * case["steps"]
    return {
        "case": name,
        "device": device,
        "batch": case["batch"],
        "steps": case["steps"],
        "rounds": rounds,
        "images_per_s": {side: images / statistics.median(values) for side, values in seconds.items()},
        "cached_over_live": pairs.ratio(seconds["live"], seconds["cached"]),
        "cached_over_diffusers": pairs.ratio(seconds["diffusers"], seconds["cached"]),
        "mmd_over_plain": pairs.ratio(seconds["plain"], seconds["cached"]),
        "live_over_diffusers": pairs.ratio(seconds["diffusers"], seconds["live"]),
        "cache_seconds_an_image": cached.seconds_of_cache / len(output.conditions.keys),
        "peak_gib": memory if device != "cpu" else None,
        "seconds": seconds,
    }


def timed(run: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds of one call and, on a GPU, the peak memory in GiB that it reached."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began, torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0


def said(row: dict[str, Any]) -> str:
    """A case as a line."""
    rates = ", ".join(f"{side} {rate:.1f}/s" for side, rate in row["images_per_s"].items())
    return (
        f"{row['case']}: {rates}; cached over live {row['cached_over_live']:.2f}, over diffusers' loop "
        f"{row['cached_over_diffusers']:.2f}; with the MMD term over without {row['mmd_over_plain']:.3f}"
    )


def main() -> None:
    """Measure the cases of this machine, print one line each, write the JSON."""
    import torch

    arguments = pairs.parser(__doc__, pairs=7, cases=CASES).parse_args()
    count, changes = (1, QUICK) if arguments.quick else (arguments.pairs, {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = arguments.case or [name for name in CASES if name != "sd15" or device == "cuda"]
    with session(ResourcesSpec(device="cpu")):
        rows = [measure(name, CASES[name] | changes, count, device) for name in chosen]
    pairs.finish("match_step", rows, arguments, text="\n".join(map(said, rows)))


if __name__ == "__main__":
    main()
