"""Noising processes against diffusers' schedulers, algebra, and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from engine.diffusion.process import Diffusion, Flow, Process

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _values(seed: int) -> torch.Tensor:
    return torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_is_that_of_diffusers(prediction: str) -> None:
    scheduler: Any = DDIMScheduler(**SD, prediction_type=prediction)
    process = Diffusion.of(scheduler.config)
    latents, noise = _values(0).float(), _values(1).float()
    times = process.times(6, torch.Generator().manual_seed(0))
    assert torch.allclose(process.noisy(latents, noise, times), scheduler.add_noise(latents, noise, times), atol=1e-6)
    aim = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, times)
    assert torch.allclose(process.aim(latents, noise, times), aim, atol=1e-6)


def test_flow_is_that_of_diffusers() -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = Flow.of(scheduler.config)
    latents, noise = _values(0).float(), _values(1).float()
    times = scheduler.timesteps[torch.tensor([0, 10, 500, 700, 900, 999])]
    assert torch.allclose(process.noisy(latents, noise, times), scheduler.scale_noise(latents, times, noise), atol=1e-5)
    plain, shifted = (Flow(shift).times(50_000, torch.Generator().manual_seed(3)) / 1000 for shift in (1.0, 3.0))
    assert torch.logit(plain).mean().item() == pytest.approx(0, abs=0.02)
    assert torch.logit(plain).std().item() == pytest.approx(1, abs=0.02)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-5)


@pytest.mark.parametrize(
    "process",
    [Diffusion(torch.linspace(0.999, 0.005, 1000).double(), kind) for kind in ("epsilon", "v_prediction")]
    + [Flow(2.0)],
    ids=["epsilon", "velocity", "flow"],
)
def test_the_right_prediction_gives_the_clean_latents_back(process: Process) -> None:
    latents, noise = _values(2), _values(3)
    times = process.times(6, torch.Generator().manual_seed(1))
    noisy = process.noisy(latents, noise, times)
    torch.testing.assert_close(
        process.clean(noisy, process.aim(latents, noise, times), times), latents, rtol=1e-5, atol=1e-5
    )
    level = process.level(times)
    assert ((level >= 0) & (level <= 1)).all()
    weights = process.clean_weights(times, 5.0)
    assert (weights <= 5).all()
    assert (weights[level.argsort()].diff() <= 0).all()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_have_the_closed_form(gamma: float) -> None:
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.arange(1000)
    snr = compute_snr(scheduler, timesteps)
    epsilon = Diffusion(scheduler.alphas_cumprod, "epsilon").weights(timesteps, gamma)
    velocity = Diffusion(scheduler.alphas_cumprod, "v_prediction").weights(timesteps, gamma)
    assert torch.allclose(epsilon, torch.minimum(snr, torch.tensor(gamma)) / snr, rtol=1e-4)
    assert torch.allclose(velocity, torch.minimum(snr, torch.tensor(gamma)) / (snr + 1), rtol=1e-4)
    assert (snr > gamma).any()
    assert (snr < gamma).any()


def test_both_predictions_weigh_the_clean_sample_by_min_snr() -> None:
    """An error of the clean sample x0, expressed as an error of the noise or the velocity, costs min(SNR, gamma) times it."""
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, error, noise = torch.tensor(0.3), torch.tensor(0.05), torch.tensor(-0.8)
    for t in (5, 300, 950):
        a = scheduler.alphas_cumprod[t]
        sample = a.sqrt() * x0 + (1 - a).sqrt() * noise
        wrong = x0 + error
        noise_of_wrong = (sample - a.sqrt() * wrong) / (1 - a).sqrt()
        velocity_of_wrong = a.sqrt() * noise_of_wrong - (1 - a).sqrt() * wrong
        velocity = a.sqrt() * noise - (1 - a).sqrt() * x0
        expected = min(float(a / (1 - a)), 5.0) * float(error) ** 2
        for kind, seen in (("epsilon", noise_of_wrong - noise), ("v_prediction", velocity_of_wrong - velocity)):
            weight = Diffusion(scheduler.alphas_cumprod, kind).weights(torch.tensor([t]), 5.0)
            assert (weight * seen**2).item() == pytest.approx(expected, rel=2e-3)
