"""The losses against brute force and other libraries."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from engine.training.pretrain.pretrain_losses import info_nce, kl_per_dimension


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
