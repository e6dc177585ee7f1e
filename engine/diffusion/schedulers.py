"""Samplers by short name, built from a checkpoint's own scheduler configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
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
DIFFUSION = tuple(_SCHEDULERS)
FLOW = tuple(_FLOW)
NAMES = DIFFUSION + FLOW
CLASSES = tuple(sorted({name for name, _ in _SCHEDULERS.values()}))
FLOW_CLASSES = tuple(name for name, _ in _FLOW.values())
DEFAULT, DEFAULT_FLOW = "dpmsolver++", "flow_euler"


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
    class_name, changes = (_SCHEDULERS | _FLOW)[name]
    return getattr(diffusers, class_name).from_config(dict(config), **changes)


def check_steps(name: str, config: Mapping[str, Any], num_inference_steps: int, strength: float) -> int:
    """How many steps a sampling of `strength` runs (`int(steps * strength)`); ConfigError where that is none or too many.

    Builds the scheduler and sets its time steps on the CPU, so that what it cannot do is known before a GPU is used.
    """
    run = min(int(num_inference_steps * strength), num_inference_steps)
    if run < 1:
        what = f"{num_inference_steps} steps at strength {strength:g} leave nothing to sample"
        raise ConfigError("generate.strength", what, "raise strength or num_inference_steps")
    try:
        scheduler: Any = make(name, config)
        shifted = bool(scheduler.config.get("use_dynamic_shifting"))
        if shifted and name == "flow_heun":
            raise ConfigError("generate.scheduler", "flow_heun has no dynamic shifting", "set it to flow_euler")
        scheduler.set_timesteps(num_inference_steps, **({"mu": 1.0} if shifted else {}))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        what = f"{name} cannot run {num_inference_steps} steps: {error}"
        raise ConfigError("generate.num_inference_steps", what) from error
    return run
