"""Noising processes against diffusers' schedulers, algebra, and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from engine.diffusion.process import Diffusion, Edm, Flow, Process

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
    + [Flow(2.0), Edm(), Edm(sign=-1.0)],
    ids=["epsilon", "velocity", "flow", "edm", "edm turned"],
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
    """An error of the clean sample x0, expressed as an error of the noise or the velocity, costs min(SNR, gamma) times
    it."""
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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_that_of_diffusers(prediction: str) -> None:
    scheduler: Any = EDMEulerScheduler(prediction_type=prediction)
    process = Edm.of(scheduler.config)
    sigmas = torch.tensor([0.002, 0.1, 0.5, 1.7, 20.0, 80.0])
    times = scheduler.precondition_noise(sigmas)
    latents, noise, output = (_values(n).float() for n in range(3))
    level = sigmas[:, None, None, None]
    noisy = process.noisy(latents, noise, times)
    torch.testing.assert_close(noisy, latents + level * noise)
    torch.testing.assert_close(process.scaled(noisy, times), scheduler.precondition_inputs(noisy, level))
    torch.testing.assert_close(
        process.clean(noisy, output, times), scheduler.precondition_outputs(noisy, output, level), rtol=1e-4, atol=1e-5
    )
    aim = process.aim(latents, noise, times)
    back = scheduler.precondition_outputs(noisy, aim, level)
    torch.testing.assert_close(back, latents, rtol=1e-3, atol=1e-3)


def test_edm_has_the_published_numbers() -> None:
    """Table 1 of arXiv 2206.00364, written out; at every level the network's input and aim have unit variance (appendix
    B.6)."""
    process, d = Edm(), 0.5
    drawn = 4 * process.times(200_000, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert drawn.std().item() == pytest.approx(1.2, abs=0.01)
    generator = torch.Generator().manual_seed(1)
    for s in (0.01, 0.5, 3.0, 60.0):
        clean = d * torch.randn(50_000, 1, 1, 1, generator=generator, dtype=torch.float64)
        noise = torch.randn(50_000, 1, 1, 1, generator=generator, dtype=torch.float64)
        times = torch.full((50_000,), s, dtype=torch.float64).log() / 4
        noisy, aim = process.noisy(clean, noise, times), process.aim(clean, noise, times)
        c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2) ** 0.5
        torch.testing.assert_close(aim, (clean - c_skip * noisy) / c_out, rtol=1e-5, atol=1e-5)
        assert process.scaled(noisy, times).std().item() == pytest.approx(1, abs=0.02)
        assert aim.std().item() == pytest.approx(1, abs=0.02)
        weight = (s**2 + d**2) / (s * d) ** 2  # of D's error in the paper's loss, eq. 2 and 144
        assert weight * c_out**2 == pytest.approx(process.weights(times[:1], 5.0).item())


@pytest.mark.parametrize("s", [0.1, 0.7, 4.0])
@pytest.mark.parametrize("variance", [0.04, 0.25, 1.5])
def test_the_best_edm_denoiser_of_gaussian_data_is_a_shrinkage(variance: float, s: float) -> None:
    """E[z | x] = v / (v + s^2) x has the least loss of all linear denoisers; the loss there is that of the posterior
    variance."""
    process, generator = Edm(), torch.Generator().manual_seed(0)
    clean = variance**0.5 * torch.randn(100_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    times = torch.full((len(clean),), s, dtype=torch.float64).log() / 4
    noisy = process.noisy(clean, noise, times)
    best = variance / (variance + s**2)
    output = process.aim(best * noisy, (noisy - best * noisy) / s, times)  # the F whose D is this denoiser
    torch.testing.assert_close(process.clean(noisy, output, times), best * noisy)

    def loss(factor: float) -> float:
        c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25) ** 0.5
        predicted = (factor - c_skip) / c_out * noisy
        return float((predicted - process.aim(clean, noise, times)).square().mean())

    posterior = variance * s**2 / (variance + s**2)
    assert loss(best) == pytest.approx(posterior * (s**2 + 0.25) / (0.5 * s) ** 2, rel=0.02)
    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best))
