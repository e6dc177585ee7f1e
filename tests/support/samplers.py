"""Every sampler on every scheduler configuration of every family, against the stock pipeline: `python -m
tests.support.samplers --help`."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers.pipelines.dit import pipeline_dit
from diffusers.utils.torch_utils import randn_tensor

from engine.diffusion import families, schedulers
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from tests.support.checkpoints import make_tokenizer
from tests.support.families import LENGTH, WIDTHS, bang_padded, text_encoder, vae

KINDS = ("sd", "xl", "dit", "sd3")
STEPS = (1, 3, 1000)
LONG = 100  # steps from which on a U-Net is its first and last layer
NOISY = ("ddpm", "dpmsolver++_sde", "euler_a", "kdpm2_a", "lcm", "sasolver", "tcd")  # draw noise at every step
_SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_ZERO = _SD | {"rescale_betas_zero_snr": True}
_V = {"prediction_type": "v_prediction"}
# name -> (class, settings): each class as it is, the schedulers of released checkpoints, and each setting that changes
# the course.
DIFFUSION_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name.removesuffix("Scheduler"): (name, {}) for name in schedulers.CLASSES},
    "SD 1 (PNDM)": ("PNDMScheduler", _SD | {"skip_prk_steps": True, "steps_offset": 1}),
    "SD 2 (DDIM, v)": (
        "DDIMScheduler",
        _SD | _V | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
    ),
    "SDXL (Euler, leading)": ("EulerDiscreteScheduler", _SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    "zero SNR, v, trailing": ("DDIMScheduler", _ZERO | _V | {"timestep_spacing": "trailing"}),
    "zero SNR, v, leading": ("DDIMScheduler", _ZERO | _V | {"steps_offset": 1}),
    "zero SNR, noise, trailing": ("DDIMScheduler", _ZERO | {"timestep_spacing": "trailing"}),
    "cosine": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    "exponential betas": ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    "trained betas": ("DDPMScheduler", {"trained_betas": [0.01] * 1000}),
    "500 steps": ("DDIMScheduler", _SD | {"num_train_timesteps": 500}),
    "thresholding": ("DDIMScheduler", _SD | {"thresholding": True}),
    "learnt variance": ("DDPMScheduler", {"variance_type": "learned_range"}),
    "Karras": ("EulerDiscreteScheduler", _SD | {"use_karras_sigmas": True}),
    "exponential sigmas": ("EulerDiscreteScheduler", _SD | {"use_exponential_sigmas": True}),
    "beta sigmas": ("EulerDiscreteScheduler", _SD | {"use_beta_sigmas": True}),
    "continuous times": ("EulerDiscreteScheduler", _SD | {"timestep_type": "continuous", **_V}),
    "third order": ("UniPCMultistepScheduler", _SD | {"solver_order": 3, "solver_type": "bh1"}),
    "midpoint": ("DPMSolverMultistepScheduler", _SD | {"solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    "first DPM-Solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "flow sigmas": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
}
FLOW_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name.removesuffix("Scheduler"): (name, {}) for name in schedulers.FLOW_CLASSES},
    "SD 3 (shift 3)": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dynamic shifting": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "shift to the end": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.02}),
    "Karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "own noise": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
}
EQUAL, LOST, FAILS, WRONG, OPEN = "=", "s", "x", "!", "."
LEGEND = f"""`{EQUAL}` equal to the stock pipeline within 1 of 255; `{LOST}` refused in one line: the sampler does \
not take a setting
that the network was trained under; `{FAILS}` refused in one line: the stock pipeline fails too, or draws what is \
not finite; `{WRONG}`
anything else; `{OPEN}` not drawn yet."""


@dataclass(frozen=True)
class Outcome:
    """What came of one cell: a mark, the largest difference of 255 where both drew, and the engine's line where it
    refused."""

    kind: str
    config: str
    sampler: str
    steps: int
    mark: str
    difference: int | None
    line: str


def configs(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What a family's scheduler may be."""
    return FLOW_CONFIGS if kind == "sd3" else DIFFUSION_CONFIGS


def outcome(kind: str, config: str, sampler: str, steps: int) -> Outcome:
    """Draw two images with the engine and with the stock pipeline, or find that neither can."""
    name, settings = configs(kind)[config]
    result = _drawn(kind, name, settings, sampler, steps)
    return Outcome(kind, config, sampler, steps, *result)


def cells(kind: str, steps: tuple[int, ...] = STEPS) -> Iterator[tuple[str, str, int]]:
    """Every configuration, sampler and number of steps of a family."""
    for config in configs(kind):
        for sampler in schedulers.FLOW if kind == "sd3" else schedulers.DIFFUSION:
            for count in steps:
                yield config, sampler, count


def _drawn(kind: str, name: str, settings: dict[str, Any], sampler: str, steps: int) -> tuple[str, int | None, str]:
    plain = {**settings, "_class_name": name}
    pipeline = _pipeline(kind, name, plain, steps)
    try:
        schedulers.left_out(sampler, pipeline.scheduler.config)
        scheduler = schedulers.make(sampler, pipeline.scheduler.config)
        takes = inspect.signature(type(scheduler).__init__).parameters
        effective = {key: value for key, value in scheduler.config.items() if key in takes}
    except ConfigError as error:
        return LOST, None, str(error)
    except Exception:  # the engine's line for it is asked for below
        effective = pipeline.scheduler.config
    key = (kind, sampler, steps, json.dumps(dict(effective), sort_keys=True, default=str))
    if key not in _DONE:
        _DONE[key] = _compared(kind, name, plain, sampler, steps)
    return _DONE[key]


def _compared(kind: str, name: str, plain: dict[str, Any], sampler: str, steps: int) -> tuple[str, int | None, str]:
    guidance = 1.0 if kind == "dit" and sampler in NOISY else 2.0
    generate = GenerateSpec(scheduler=sampler, num_inference_steps=steps, guidance_scale=guidance, visual_token="none")
    family = families.of(_pipeline(kind, name, plain, steps))
    config = family.scheduler_config(plain)
    try:
        schedulers.check_steps(sampler, config, steps, 1.0, counts_steps=family.counts_steps)  # as before the run
    except ConfigError as error:
        with suppress(Exception):
            if np.isfinite(_stock(kind, name, plain, sampler, steps, guidance)).all():
                return WRONG, None, str(error)
        return FAILS, None, str(error)
    ours = Sampler(_pipeline(kind, name, plain, steps), generate)
    drawn = ours.draw([Request(f"photo of digit {word}", seed, label=seed) for seed, word in enumerate(("one", "two"))])
    if any(image.pixels is None for image in drawn):
        return WRONG, None, str([image.reason for image in drawn])
    expected = (_stock(kind, name, plain, sampler, steps, guidance) * 255).round()
    difference = int(np.abs(np.stack([image.pixels for image in drawn]).astype(float) - expected).max())
    return EQUAL if difference <= 1 else WRONG, difference, ""


_DONE: dict[Any, tuple[str, int | None, str]] = {}  # what differs in names alone is drawn once


def _stock(kind: str, name: str, plain: dict[str, Any], sampler: str, steps: int, guidance: float) -> np.ndarray:
    """What a user of diffusers gets: the pipeline, its scheduler exchanged for the sampler's class by `from_config`."""
    pipeline = _pipeline(kind, name, plain, steps)
    class_name, changes = schedulers.SAMPLERS["flow" if kind == "sd3" else "diffusion"][sampler]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(pipeline.scheduler.config, **changes)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts: Any = [0, 1] if kind == "dit" else ["photo of digit one", "photo of digit two"]
    more = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators, "output_type": "np"}
    with np.errstate(all="ignore"), _as_other_pipelines(pipeline, steps) if kind == "dit" else nullcontext():
        return np.asarray(pipeline(prompts, **more).images)


@contextmanager
def _as_other_pipelines(pipeline: Any, steps: int) -> Iterator[None]:
    """What DiTPipeline lacks for samplers other than DDIM's and DPM-Solver's kinds, and all other pipelines do.

    It does not scale the first noise by `init_noise_sigma`, steps the scaled input instead of the latents, and hands no
    generators to the steps.
    """
    scheduler, first = pipeline.scheduler, copy.deepcopy(pipeline.scheduler)
    first.set_timesteps(steps)
    scale, step, latents = scheduler.scale_model_input, scheduler.step, []

    def noise(shape: Any, generator: Any, **more: Any) -> torch.Tensor:
        options = {"generator": generator} if "generator" in inspect.signature(step).parameters else {}
        scheduler.step = lambda output, t, sample: step(output, t, latents[0], **options)
        return randn_tensor(shape, generator=generator, **more) * first.init_noise_sigma

    def scaled(sample: torch.Tensor, t: Any) -> torch.Tensor:
        latents[:] = [sample]
        return scale(sample, t)

    scheduler.scale_model_input = scaled
    with patch.object(pipeline_dit, "randn_tensor", noise):
        yield


def _pipeline(kind: str, name: str, plain: dict[str, Any], steps: int) -> Any:
    """A stock pipeline with random weights whose scheduler is read as from a file."""
    scheduler = getattr(diffusers, name).from_config(plain)
    pipeline_name, parts, more = _parts(kind, steps > LONG)
    pipeline = getattr(diffusers, pipeline_name)(**parts, scheduler=scheduler, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _parts(kind: str, long: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        name, parts, more = {"sd": _sd, "xl": _xl, "dit": _dit, "sd3": _sd3}[kind]()
    if long and "unet" in parts:
        parts["unet"].forward = partial(_shallow, parts["unet"])
    return name, parts, more


def _shallow(
    unet: Any, sample: torch.Tensor, t: Any, encoder_hidden_states: torch.Tensor, **more: Any
) -> tuple[torch.Tensor]:
    """Its first and last layer, and the text: what a thousand steps have time for."""
    text = encoder_hidden_states.mean((1, 2))[:, None, None, None]
    return (torch.tanh(unet.conv_out(unet.conv_in(sample))) + text,)


def _unet(width: int, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    ).eval()


def _sd() -> tuple[str, dict[str, Any], dict[str, Any]]:
    parts = {"vae": vae(4), "unet": _unet(WIDTHS[0]), "text_encoder": text_encoder(WIDTHS[0], None)}
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return "StableDiffusionPipeline", parts | {"tokenizer": make_tokenizer(LENGTH)}, more


def _xl() -> tuple[str, dict[str, Any], dict[str, Any]]:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
    }
    parts = {
        "vae": vae(4),
        "unet": _unet(sum(WIDTHS), **added),
        "text_encoder": text_encoder(WIDTHS[0], None),
        "text_encoder_2": text_encoder(WIDTHS[1], 20),
        "tokenizer": make_tokenizer(LENGTH),
        "tokenizer_2": bang_padded(),
    }
    return "StableDiffusionXLPipeline", parts, {"add_watermarker": False}


def _dit() -> tuple[str, dict[str, Any], dict[str, Any]]:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4
    )
    return "DiTPipeline", {"vae": vae(4), "transformer": network.eval()}, {}


def _sd3() -> tuple[str, dict[str, Any], dict[str, Any]]:
    network = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=16,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=6,
    )
    parts = {
        "vae": vae(16, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        "transformer": network.eval(),
        "text_encoder": text_encoder(WIDTHS[0], WIDTHS[0]),
        "text_encoder_2": text_encoder(WIDTHS[1], WIDTHS[1]),
        "tokenizer": make_tokenizer(LENGTH),
        "tokenizer_2": bang_padded(),
    }
    return "StableDiffusion3Pipeline", parts, {"text_encoder_3": None, "tokenizer_3": None}


def markdown(found: list[Outcome]) -> str:
    """One table a family: configurations by samplers, a mark for each number of steps."""
    counts = Counter(one.mark for one in found)
    largest = max((one.difference or 0 for one in found), default=0)
    total = (
        f"{len(found):,} cells: {counts[EQUAL]:,} equal (largest difference {largest} of "
        f"255), {counts[LOST]:,} and {counts[FAILS]:,} refused, {counts[WRONG]:,} else."
    )
    text = [
        "# Samplers against stock diffusers",
        "",
        f"Made by `python -m tests.support.samplers` with diffusers {diffusers.__version__} on "
        "random-weight models; marks are for "
        f"{', '.join(f'{steps:,}' for steps in STEPS)} steps (the last with U-Nets of two layers).",
        "",
        LEGEND,
        "",
        total,
    ]
    for kind in KINDS:
        marks = {(one.config, one.sampler, one.steps): one.mark for one in found if one.kind == kind}
        samplers = schedulers.FLOW if kind == "sd3" else schedulers.DIFFUSION
        text += [
            "",
            f"## {kind}",
            "",
            f"| scheduler of the checkpoint | {' | '.join(samplers)} |",
            "| --- |" + " --- |" * len(samplers),
        ]
        for config in configs(kind):
            row = ["".join(marks.get((config, sampler, steps), OPEN) for steps in STEPS) for sampler in samplers]
            text.append(f"| {config} | {' | '.join(row)} |")
    reasons = Counter(
        re.sub(r"^\S+ (does|cannot run \S+ steps)|<class .*|;.*", r"\1", one.line.partition(": ")[2])
        for one in found
        if one.line
    )
    text += [
        "",
        "## Lines",
        "",
        *(f"- {count:,} times: `... {reason.strip()}`" for reason, count in sorted(reasons.items())),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Draw every cell and write the table; or draw some into a JSON file, and join such files into the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS), help="the families to draw with")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="numbers of steps")
    parser.add_argument("--part", default="1/1", help="as 2/4: the second of four parts, each some samplers")
    parser.add_argument("--out", type=Path, help="a JSON file to write instead of the table")
    parser.add_argument("--join", type=Path, nargs="+", help="JSON files to make the table of")
    parser.add_argument("--write", type=Path, default=Path("docs/samplers.md"), help="where the table goes")
    asked = parser.parse_args()
    if asked.join:
        found = [one for path in asked.join for one in _read(path)]
    else:
        part, parts = map(int, asked.part.split("/"))
        wanted = [(kind, *cell) for kind in asked.kind for cell in cells(kind, tuple(asked.steps))]
        found = _outcomes([one for one in wanted if _place(one[2]) % parts == part - 1], asked.out)
    if asked.out is None:
        asked.write.write_text(markdown(found))


def _outcomes(wanted: list[tuple[str, str, str, int]], out: Path | None) -> list[Outcome]:
    """Of these cells, those that are wrong printed; what `out` holds already is kept, and what is new written there at
    once."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    found = _read(out) if out is not None and out.exists() else []
    done = {(one.kind, one.config, one.sampler, one.steps) for one in found}
    for cell in wanted:
        if cell not in done:
            found.append(outcome(*cell))
            if found[-1].mark == WRONG:
                print(found[-1], flush=True)
            if out is not None:
                out.write_text(json.dumps([asdict(one) for one in found], indent=0))
    return found


def _read(path: Path) -> list[Outcome]:
    return [Outcome(**one) for one in json.loads(path.read_text())]


def _place(sampler: str) -> int:
    return (schedulers.FLOW if sampler in schedulers.FLOW else schedulers.DIFFUSION).index(sampler)


if __name__ == "__main__":
    main()
