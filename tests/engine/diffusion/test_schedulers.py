"""Schedulers by name: near matches, settings taken over, and each one independent of the batch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from engine.diffusion import schedulers
from engine.diffusion.checkpoint import Checkpoint, load
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.spec.models import GenerateSpec


@pytest.fixture(scope="module")
def pipeline(inspected: dict[str, Checkpoint]) -> Any:
    return load(inspected["digits"], "cpu", "float32")


CONFIG = {
    "beta_start": 0.001,
    "beta_end": 0.013,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 900,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}


@pytest.mark.parametrize(("typo", "near"), [("dpmsolver", "dpmsolver++"), ("Euler", "euler"), ("unpic", "unipc")])
def test_a_typo_gets_its_near_match(typo: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown scheduler '{typo}'; did you mean {near.replace('+', '[+]')}\w*\?"):
        schedulers.check_name(typo)


def test_a_name_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(ConfigError, match=r"use one of ddim, ddpm, .*unipc"):
        schedulers.check_name("zzz")


def test_names_are_checked_without_torch_and_diffusers() -> None:
    code = """
import sys
from engine.diffusion.schedulers import NAMES, check_name
for name in NAMES:
    check_name(name)
print(bool({"torch", "diffusers", "numpy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", schedulers.DIFFUSION)
def test_noise_schedule_and_prediction_type_are_the_checkpoints(name: str) -> None:
    config = schedulers.make(name, CONFIG).config
    kept = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    assert kept == {key: CONFIG[key] for key in kept}
    assert config["prediction_type"] == "v_prediction"
    assert not config.get("clip_sample", False)


@pytest.mark.parametrize("name", schedulers.FLOW)
def test_flow_samplers_follow_the_checkpoints_shift(name: str) -> None:
    """Their first steps begin at noise alone; the noise that stock pipelines hand no generator for stays off."""
    scheduler: Any = schedulers.make(name, {"shift": 3.0, "num_train_timesteps": 1000, "stochastic_sampling": True})
    scheduler.set_timesteps(5)
    assert scheduler.config.shift == 3.0
    assert scheduler.sigmas[0].item() == pytest.approx(1.0)
    assert scheduler.timesteps[0].item() == pytest.approx(1000.0)
    assert name != "flow_euler" or not scheduler.config.stochastic_sampling


@pytest.mark.parametrize("flow", [True, False])
def test_samplers_of_the_other_kind_of_training_are_refused(flow: bool) -> None:
    for name in schedulers.FLOW if flow else schedulers.DIFFUSION:
        schedulers.check_kind(name, flow, "this")
        with pytest.raises(ConfigError, match=r"generate\.scheduler: .*; set generate\.scheduler to (flow_euler|dpm)"):
            schedulers.check_kind(name, not flow, "this")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("dpmsolver++_karras", {"use_karras_sigmas": True}),
        ("dpmsolver++_sde", {"algorithm_type": "sde-dpmsolver++"}),
        ("pndm", {"skip_prk_steps": True}),
        ("unipc_karras", {"use_karras_sigmas": True}),
        ("unipc", {"use_karras_sigmas": False}),
    ],
)
def test_variants_set_what_their_names_say(name: str, setting: dict) -> None:
    assert schedulers.make(name, CONFIG).config.items() >= setting.items()


@pytest.mark.parametrize(("steps", "strength", "run"), [(20, 1.0, 20), (30, 0.75, 22), (10, 0.5, 5), (3, 0.34, 1)])
def test_strength_leaves_so_many_steps(steps: int, strength: float, run: int) -> None:
    assert schedulers.check_steps("unipc", CONFIG, steps, strength) == run


def test_steps_that_a_scheduler_cannot_run_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"generate\.strength: 3 steps at strength 0\.3 leave nothing"):
        schedulers.check_steps("ddim", CONFIG, 3, 0.3)
    with pytest.raises(ConfigError, match=r"generate\.num_inference_steps: lcm cannot run 51 steps"):
        schedulers.check_steps("lcm", CONFIG, 51, 1.0)
    with pytest.raises(ConfigError, match="ddpm cannot run 901 steps"):
        schedulers.check_steps("ddpm", CONFIG, 901, 1.0)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", schedulers.DIFFUSION)
def test_a_sample_is_the_same_in_any_batch(pipeline: Any, name: str, strength: float) -> None:
    """First of three, last of three, alone: noise of each step too must come from the sample's own generator."""
    spec = GenerateSpec(scheduler=name, num_inference_steps=3, strength=strength, pairing="own")
    sampler = Sampler(pipeline, spec)
    latents = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)
    requests = [
        Request("photo of digit one", 2**63, None, latents[0]),
        Request("photo of digit two", 1, None, latents[1]),
        Request("photo of digit one", 2, None, latents[0]),
    ]
    together, backwards, alone = (
        np.stack([drawn.pixels for drawn in results]).astype(int)
        for results in (sampler.draw(requests), sampler.draw(requests[::-1])[::-1], sampler.draw(requests[:1]))
    )
    assert np.abs(together - backwards).max() <= 2
    assert np.abs(together[0] - alone[0]).max() <= 2
    assert np.abs(together[0] - together[2]).max() > 8
