"""Matching losses against sums written out, against the released form, and against numerical gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.training.matching import matching_losses

SHAPE = (6, 2, 3, 3)


def _values(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PREDICTED, TARGET = _values(0), _values(1)
WEIGHTS = _values(2, (6,)).abs()
LABELS = torch.tensor([0, 2, 0, 1, 2, 0])


def test_residual_is_the_released_loss_at_its_batch_size() -> None:
    batch = len(WEIGHTS)
    predicted, target, weights = PREDICTED.numpy(), TARGET.numpy(), WEIGHTS.numpy()
    total = np.zeros(SHAPE[1:])
    for i in range(batch):
        total += weights[i] * predicted[i] - weights[i] * target[i]
    released = 0.003 * float((total**2).mean())
    ours = 0.003 * batch**2 * matching_losses.residual(PREDICTED, TARGET, WEIGHTS)
    assert float(ours) == pytest.approx(released, rel=1e-12)


def test_residual_does_not_grow_with_a_repeated_batch() -> None:
    twice = [torch.cat([part, part]) for part in (PREDICTED, TARGET, WEIGHTS)]
    assert float(matching_losses.residual(*twice)) == pytest.approx(
        float(matching_losses.residual(PREDICTED, TARGET, WEIGHTS)), rel=1e-12
    )


def test_residual_per_class_is_a_mean_over_images_of_their_class() -> None:
    expected = 0.0
    for label in LABELS.unique():
        own = label == LABELS
        expected += (
            int(own.sum()) / len(LABELS) * float(matching_losses.residual(PREDICTED[own], TARGET[own], WEIGHTS[own]))
        )
    assert float(matching_losses.residual_per_class(PREDICTED, TARGET, WEIGHTS, LABELS)) == pytest.approx(
        expected, rel=1e-12
    )


def _mmd_by_hand(fake: np.ndarray, real: np.ndarray, weights: np.ndarray) -> float:
    n, share = len(real), weights / weights.sum()
    pairs = [((real[i] - real[j]) ** 2).sum() for i in range(n) for j in range(n) if i != j]
    scale = sum(pairs) / len(pairs)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        d = float(((a - b) ** 2).sum())
        return sum(math.exp(-d / (width * scale)) for width in (0.25, 0.5, 1.0, 2.0, 4.0)) / 5

    total, pairs_weight = 0.0, 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            both = (
                kernel(fake[i], fake[j])
                + kernel(real[i], real[j])
                - kernel(fake[i], real[j])
                - kernel(real[i], fake[j])
            )
            total += share[i] * share[j] * both
            pairs_weight += share[i] * share[j]
    return total / pairs_weight


def test_kernel_mmd_is_the_double_sum_over_different_pairs() -> None:
    fake, real, weights = _values(3, (5, 4)), _values(4, (5, 4)) + 0.5, torch.tensor([1.0, 0.2, 0.0, 3.0, 1.0]).double()
    assert float(matching_losses.kernel_mmd(fake, real, weights)) == pytest.approx(
        _mmd_by_hand(fake.numpy(), real.numpy(), weights.numpy()), rel=1e-10
    )
    equal = matching_losses.kernel_mmd(fake, real)
    assert float(equal) == pytest.approx(_mmd_by_hand(fake.numpy(), real.numpy(), np.ones(5)), rel=1e-10)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_kernel_mmd_is_unbiased_whatever_rows_have_to_do_with_their_partners(correlation: float) -> None:
    """Batches of 8 of one distribution: the mean is 0 within its error. The V-statistic's would be about 0.1."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for _ in range(1500):
        real, other = torch.randn(2, 8, 3, generator=rng, dtype=torch.float64)
        fake = correlation * real + math.sqrt(1 - correlation**2) * other
        found.append(float(matching_losses.kernel_mmd(fake, real)))
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    apart = [
        float(matching_losses.kernel_mmd(*torch.randn(2, 8, 3, generator=rng) * torch.tensor([[[1.0]], [[0.6]]])))
        for _ in range(1000)
    ]
    assert np.mean(apart) > 8 * np.std(apart) / math.sqrt(len(apart))


def test_the_terms_bias_is_as_stated_the_best_denoiser_is_not_at_its_minimum() -> None:
    """Gaussian latents of variance v: the best prediction shrinks by snr v / (1 + snr v); the term is least without the
    shrinking."""
    rng, v, snr = torch.Generator().manual_seed(1), 0.5, 2.0
    clean = v**0.5 * torch.randn(60, 64, 2, generator=rng, dtype=torch.float64)
    noisy = clean + torch.randn(clean.shape, generator=rng, dtype=torch.float64) / snr**0.5
    best = snr * v / (1 + snr * v)
    assert float((best * noisy).var()) == pytest.approx(v * best, rel=0.05)
    scales = np.linspace(0.7, 1.6, 19)
    means = [
        np.mean([float(matching_losses.kernel_mmd(s * best * x, z)) for x, z in zip(noisy, clean, strict=True)])
        for s in scales
    ]
    assert scales[int(np.argmin(means))] == pytest.approx(best**-0.5, abs=0.1)  # at the variance of the data


def test_kernel_mmd_compares_sets_not_pairs() -> None:
    real, other = _values(5, (400, 3)), _values(6, (400, 3))
    turned = matching_losses.kernel_mmd(other.flip(0), real)
    assert float(turned) == pytest.approx(float(matching_losses.kernel_mmd(other, real)), abs=2e-3)
    near, far = matching_losses.kernel_mmd(other + 0.3, real), matching_losses.kernel_mmd(other + 2, real)
    assert float(turned) < float(near) < float(far)


def test_one_image_and_equal_images_stay_finite() -> None:
    for real in (torch.ones(1, 3), torch.ones(4, 3)):
        fake = real.clone().requires_grad_()
        loss = matching_losses.kernel_mmd(fake, real)
        loss.backward()
        assert float(loss.detach()) == 0
        assert torch.isfinite(fake.grad).all()


def test_gradients_are_those_of_finite_differences() -> None:
    small = [_values(seed, (4, 2, 2, 2)) for seed in (8, 9)]
    weights, labels = _values(10, (4,)).abs(), torch.tensor([0, 1, 0, 1])
    predicted = small[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: matching_losses.residual(p, small[1], weights), predicted)
    assert torch.autograd.gradcheck(
        lambda p: matching_losses.residual_per_class(p, small[1], weights, labels), predicted
    )
    assert torch.autograd.gradcheck(
        lambda p: matching_losses.kernel_mmd(p.flatten(1), small[1].flatten(1), weights), predicted
    )
