"""Samplers by short name, built from a checkpoint's own scheduler configuration."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Known = tuple[str, Mapping[str, object]]  # a diffusers class, and the settings that differ from the checkpoint's
# By name. Every one draws its per-step noise, if any, from the generators that the pipeline hands it; those that cannot
# (DPMSolverSDEScheduler seeds a Brownian tree of its own, IPNDM ignores the prediction type) are left out.
_SCHEDULERS: dict[str, Known] = {
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
_FLOW: dict[str, Known] = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
# For what was trained under EDM (arXiv 2206.00364), by the same names.
_EDM: dict[str, Known] = {
    "dpmsolver++": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++_sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EDMEulerScheduler", {}),
    "heun": ("EDMHeunScheduler", {}),
}
Kind = Literal["diffusion", "flow", "edm"]
SAMPLERS: dict[str, dict[str, Known]] = {"diffusion": _SCHEDULERS, "flow": _FLOW, "edm": _EDM}
DIFFUSION, FLOW, EDM = (tuple(known) for known in SAMPLERS.values())
NAMES = DIFFUSION + FLOW
CLASSES, FLOW_CLASSES, EDM_CLASSES = (
    tuple(dict.fromkeys(name for name, _ in known.values())) for known in SAMPLERS.values()
)
_TRAINED = {"diffusion": "by diffusion", "flow": "by flow matching", "edm": "under EDM"}
_DEFAULTS = {"diffusion": "dpmsolver++", "flow": "flow_euler", "edm": "dpmsolver++"}
# Settings of a scheduler that say how one sampler takes its steps: another may leave them out, and says so. All others
# say what the network was trained under.
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


def check_kind(name: str, kind: Kind, family: str) -> None:
    """Refuse a sampler of another kind of training (ConfigError); `kind`: the family's."""
    check_name(name)
    if name in SAMPLERS[kind]:
        return
    own = [other for other, known in SAMPLERS.items() if name in known]
    what = f"{name} is for checkpoints that were trained {_TRAINED[own[0]]}, {family} was trained {_TRAINED[kind]}"
    raise ConfigError("generate.scheduler", what, f"set generate.scheduler to {_DEFAULTS[kind]}")


def make(name: str, config: Mapping[str, Any], kind: Kind = "diffusion") -> SchedulerMixin:
    """The scheduler `name` with the noise schedule and prediction type of `config`, a diffusers scheduler config.

    `kind` says which of two is meant where a name stands for samplers of several kinds of training.
    """
    check_name(name)
    class_name, changes = _settings(name, kind)
    return _class(class_name).from_config(dict(config), **changes)  # type: ignore[no-any-return]


def _settings(name: str, kind: Kind) -> Known:
    return SAMPLERS[kind].get(name) or (_SCHEDULERS | _FLOW)[name]


def _class(name: str) -> Any:
    """Of diffusers, or Heun's method, which it has not for EDM."""
    import diffusers

    if name == "EDMHeunScheduler":
        from engine.diffusion.edmheun import EDMHeunScheduler

        return EDMHeunScheduler
    return getattr(diffusers, name)


def left_out(name: str, config: Mapping[str, Any], kind: Kind = "diffusion") -> list[str]:
    """The checkpoint's settings `key=value` that `name` leaves out or changes, where they are no sampler's default.

    ConfigError for one that says what the network was trained under, such as `rescale_betas_zero_snr` or
    `shift_terminal`.
    """
    defaults = _defaults()
    (own, changes), lost = _settings(name, kind), {}
    for key, value in config.items():
        ours = changes.get(key, value) if key in defaults[own] else None
        ordinary = [settings[key] for settings in defaults.values() if key in settings]
        if value != ours and value not in (None, *ordinary) and not key.startswith("_"):
            lost[key] = value
    strange = next(
        (key for key in lost if key not in _OF_STEPS and any(key in known for known in defaults.values())), None
    )
    if strange is not None:
        others = next(known for known in SAMPLERS.values() if known.get(name) == (own, changes))
        fit = [other for other, (their, _) in others.items() if strange in defaults[their]]
        fix = f"set it to {' or '.join(fit)}" if fit else "use another checkpoint"
        what = f"{name} does not take {strange} ({lost[strange]}), which the checkpoint's scheduler sets"
        raise ConfigError("generate.scheduler", what, fix)
    return [f"{key}={value}" for key, value in sorted(lost.items())]


@cache
def _defaults() -> dict[str, dict[str, object]]:
    """What each class takes, with its defaults."""
    kinds = {
        kind: inspect.signature(_class(kind).__init__).parameters for kind in (*CLASSES, *FLOW_CLASSES, *EDM_CLASSES)
    }
    return {kind: {key: p.default for key, p in taken.items() if key != "self"} for kind, taken in kinds.items()}


def check_steps(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    strength: float,
    *,
    counts_steps: bool = False,
    kind: Kind = "diffusion",
) -> int:
    """How many steps a sampling of `strength` runs (`int(steps * strength)`); ConfigError where that is none or too
    many.

    Runs them all on four numbers, so that what the sampler cannot do is known before a GPU is used. `counts_steps` and
    `kind` are those of the family.
    """
    run = min(int(num_inference_steps * strength), num_inference_steps)
    if run < 1:
        what = f"{num_inference_steps} steps at strength {strength:g} leave nothing to sample"
        raise ConfigError("generate.strength", what, "raise strength or num_inference_steps")
    left_out(name, config, kind)
    try:
        finite = _rehearse(make(name, config, kind), num_inference_steps, run, counts_steps)
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

    options: dict[str, object] = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
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
