"""The losses against brute force and other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from engine.training.pretrain.losses import info_nce, kl_per_dimension, min_snr_weights


def _pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
    return functional.normalize(images, dim=1), functional.normalize(texts, dim=1)


def test_info_nce_of_different_pairs_is_the_loss_of_clip() -> None:
    images, texts = _pairs(7)
    scale = torch.tensor(9.0, dtype=torch.float64)
    expected = image_text_contrastive_loss(scale * texts @ images.T)
    assert info_nce(images, texts, torch.arange(7), scale).item() == pytest.approx(expected.item(), rel=1e-9)


def test_info_nce_with_repeats_equals_brute_force() -> None:
    images, texts = _pairs(6)
    groups = [0, 1, 0, 2, 1, 0]
    scale = 4.0

    def one_way(queries: torch.Tensor, answers: torch.Tensor) -> float:
        total = 0.0
        for i in range(6):
            scores = [scale * float(queries[i] @ answers[j]) for j in range(6)]
            log_sum = torch.tensor(scores, dtype=torch.float64).logsumexp(0).item()
            positives = [scores[j] - log_sum for j in range(6) if groups[j] == groups[i]]
            total -= sum(positives) / len(positives)
        return total / 6

    expected = (one_way(images, texts) + one_way(texts, images)) / 2
    got = info_nce(images, texts, torch.tensor(groups), torch.tensor(scale, dtype=torch.float64))
    assert got.item() == pytest.approx(expected, rel=1e-9)


def test_kl_equals_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(5)
    mean, logvar = torch.randn(2, 3, 4, 2, 2, generator=generator)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    assert kl_per_dimension(mean, logvar).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_have_the_closed_form(gamma: float) -> None:
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.arange(1000)
    snr = compute_snr(scheduler, timesteps)
    epsilon = min_snr_weights(scheduler.alphas_cumprod, timesteps, gamma, "epsilon")
    velocity = min_snr_weights(scheduler.alphas_cumprod, timesteps, gamma, "v_prediction")
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
            weight = min_snr_weights(scheduler.alphas_cumprod, torch.tensor([t]), 5.0, kind)
            assert (weight * seen**2).item() == pytest.approx(expected, rel=2e-3)
