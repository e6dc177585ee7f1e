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
NAMES = tuple(_SCHEDULERS)
CLASSES = tuple(sorted({name for name, _ in _SCHEDULERS.values()}))


def check_name(name: str) -> None:
    """Refuse a name that is not in `NAMES` with a near match (ConfigError); imports neither torch nor diffusers."""
    if name not in _SCHEDULERS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(NAMES)}"
        raise ConfigError("generate.scheduler", f"unknown scheduler {name!r}", fix)


def make(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler `name` with the noise schedule and prediction type of `config`, a diffusers scheduler config."""
    import diffusers

    check_name(name)
    class_name, changes = _SCHEDULERS[name]
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
        make(name, config).set_timesteps(num_inference_steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        what = f"{name} cannot run {num_inference_steps} steps: {error}"
        raise ConfigError("generate.num_inference_steps", what) from error
    return run
