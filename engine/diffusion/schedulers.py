"""Samplers by short name, built from a checkpoint's own scheduler configuration."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# name -> (diffusers class, settings that differ from the checkpoint's). Every one draws its per-step noise, if any,
# from the generators that the pipeline hands it; those that cannot (DPMSolverSDEScheduler seeds a Brownian tree of
# its own, IPNDM ignores the prediction type) are left out.
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmsolver++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++_single": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "sasolver": ("SASolverScheduler", {}),
    "tcd": ("TCDScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}
# For what was trained by flow matching; noise that the stock pipeline does not hand to the generators is switched off.
_FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
SAMPLERS = _SCHEDULERS | _FLOW
DIFFUSION = tuple(_SCHEDULERS)
FLOW = tuple(_FLOW)
NAMES = DIFFUSION + FLOW
CLASSES = tuple(sorted({name for name, _ in _SCHEDULERS.values()}))
FLOW_CLASSES = tuple(name for name, _ in _FLOW.values())
DEFAULT, DEFAULT_FLOW = "dpmsolver++", "flow_euler"
# Settings of a scheduler that say how one sampler takes its steps: another may leave them out, and says so. All others say what
# the network was trained under.
_OF_STEPS = frozenset(
    [
        "algorithm_type",
        "base_image_seq_len",
        "base_shift",
        "clip_sample",
        "clip_sample_range",
        "corrector_order",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "max_image_seq_len",
        "max_shift",
        "original_inference_steps",
        "predict_x0",
        "predictor_order",
        "sample_max_value",
        "set_alpha_to_one",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "stochastic_sampling",
        "tau_func",
        "time_shift_type",
        "timestep_scaling",
        "timestep_spacing",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    ]
)


def check_name(name: str) -> None:
    """Refuse a name that is not in `NAMES` with a near match (ConfigError); imports neither torch nor diffusers."""
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(NAMES)}"
        raise ConfigError("generate.scheduler", f"unknown scheduler {name!r}", fix)


def check_kind(name: str, flow: bool, family: str) -> None:
    """Refuse a sampler of the other kind of training (ConfigError); `flow`: the family was trained by flow matching."""
    check_name(name)
    if (name in _FLOW) == flow:
        return
    if flow:
        what, fix = f"{name} does not run {family}, which was trained by flow matching", f"{DEFAULT_FLOW}"
    else:
        what, fix = f"{name} is for checkpoints that were trained by flow matching, not for {family}", f"{DEFAULT}"
    raise ConfigError("generate.scheduler", what, f"set generate.scheduler to {fix}")


def make(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler `name` with the noise schedule and prediction type of `config`, a diffusers scheduler config."""
    import diffusers

    check_name(name)
    class_name, changes = SAMPLERS[name]
    return getattr(diffusers, class_name).from_config(dict(config), **changes)


def left_out(name: str, config: Mapping[str, Any]) -> list[str]:
    """The checkpoint's settings `key=value` that `name` leaves out or changes, where they are no sampler's default.

    ConfigError for one that says what the network was trained under, such as `rescale_betas_zero_snr` or `shift_terminal`.
    """
    defaults = _defaults()
    (kind, changes), lost = SAMPLERS[name], {}
    for key, value in config.items():
        ours = changes.get(key, value) if key in defaults[kind] else None
        ordinary = [settings[key] for settings in defaults.values() if key in settings]
        if value != ours and value not in (None, *ordinary) and not key.startswith("_"):
            lost[key] = value
    strange = next(
        (key for key in lost if key not in _OF_STEPS and any(key in known for known in defaults.values())), None
    )
    if strange is not None:
        others = _FLOW if name in _FLOW else _SCHEDULERS
        fit = [other for other, (their, _) in others.items() if strange in defaults[their]]
        fix = f"set it to {' or '.join(fit)}" if fit else "use another checkpoint"
        what = f"{name} does not take {strange} ({lost[strange]}), which the checkpoint's scheduler sets"
        raise ConfigError("generate.scheduler", what, fix)
    return [f"{key}={value}" for key, value in sorted(lost.items())]


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    """What each class takes, with its defaults."""
    import diffusers

    kinds = {
        kind: inspect.signature(getattr(diffusers, kind).__init__).parameters for kind in (*CLASSES, *FLOW_CLASSES)
    }
    return {kind: {key: p.default for key, p in taken.items() if key != "self"} for kind, taken in kinds.items()}


def check_steps(
    name: str, config: Mapping[str, Any], num_inference_steps: int, strength: float, *, counts_steps: bool = False
) -> int:
    """How many steps a sampling of `strength` runs (`int(steps * strength)`); ConfigError where that is none or too many.

    Runs them all on four numbers, so that what the sampler cannot do is known before a GPU is used. `counts_steps` is that
    of the family.
    """
    run = min(int(num_inference_steps * strength), num_inference_steps)
    if run < 1:
        what = f"{num_inference_steps} steps at strength {strength:g} leave nothing to sample"
        raise ConfigError("generate.strength", what, "raise strength or num_inference_steps")
    left_out(name, config)
    try:
        finite = _rehearse(make(name, config), num_inference_steps, run, counts_steps)
        why = "" if finite else "the numbers become infinite"
    except Exception as error:  # whatever a sampler does with another one's settings
        why = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
    if why:
        what = f"{name} cannot run {num_inference_steps} steps under the checkpoint's settings: {why}"
        raise ConfigError(
            "generate.num_inference_steps", what, "use another number of steps, or another generate.scheduler"
        )
    return run


def _rehearse(scheduler: Any, num_inference_steps: int, run: int, counts_steps: bool) -> bool:
    """Sample one latent pixel as the stock pipelines do, from the last `run` steps on; whether it stays finite."""
    import torch

    options: dict[str, Any] = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    takes = inspect.signature(scheduler.set_timesteps).parameters
    scheduler.set_timesteps(num_inference_steps, **{key: value for key, value in options.items() if key in takes})
    first = (num_inference_steps - run) * scheduler.order
    if (first or counts_steps) and hasattr(scheduler, "set_begin_index"):  # else the sampler finds it by its time
        scheduler.set_begin_index(first)
    generator = torch.Generator().manual_seed(0)
    takes = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in takes else {}
    sample = torch.randn(1, 4, 1, 1, generator=generator)
    for t in scheduler.timesteps[first:]:
        given = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(given / 2, t, sample, return_dict=False, **options)[0]
    return bool(sample.isfinite().all())
