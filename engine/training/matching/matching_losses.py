"""Distribution-matching terms: maximum mean discrepancy between what the generator predicts and what is real, batch by
batch."""

from __future__ import annotations

import torch

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def residual(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over latent positions of the squared batch MEAN of weighted residuals: a linear-kernel MMD.

    `predicted`, `target`: (B, ...) noise or velocity; `weights`: (B,) min-SNR weights. Real-Fake (arXiv 2310.10402)
    sums over its batch of 8 where this takes the mean: its weight w there is w B^2 here.
    """
    return _mean_residual(predicted, target, weights).square().mean()


def residual_per_class(
    predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """`residual` of the images of each class by themselves, averaged over the batch's images; `labels`: (B,) int64.

    The mean of one image is that image, its square no distance between distributions: batches hold two of each class at
    least (`draws.class_batch_indices`).
    """
    same = (labels[:, None] == labels[None, :]).to(predicted.dtype)
    means = (same / same.sum(1, keepdim=True)) @ _weighted(predicted, target, weights)
    return means.square().mean()


def kernel_mmd(fake: torch.Tensor, real: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Squared MMD of two sets under a mixture of RBF kernels, as a U-statistic (Gretton et al. 2012, JMLR 13, lemma 6).

    `fake`, `real`: (B, D), row i of the one made from row i of the other; `weights`: (B,) >= 0, how much a pair counts
    (None: equally). sum over i != j of w_i w_j (k(f_i, f_j) + k(r_i, r_j) - k(f_i, r_j) - k(r_i, f_j)) / sum of w_i
    w_j: unbiased whatever a row's dependence on its own partner, 0 in the mean where both sets have one distribution,
    and so negative at times. 0 for a single pair. The mixture is the mean of exp(-d^2 / (s m)) over s in `BANDWIDTHS`,
    m being the mean squared distance of different real points.

    As a TERM of the fine-tune it is biased: a prediction from a noisy latent is at best the mean of the clean ones that
    it may come from, which varies less than they do (for latents of variance v and a signal-to-noise ratio of snr by
    the factor snr v / (1 + snr v)), while the real side is not smoothed so: no smoothing of it that does not ask the
    network itself is known. So the best denoiser is not at the minimum: the term draws predictions apart. Its weights
    min(SNR, gamma) leave most to times at which the factor is near 1.
    """
    count = len(real)
    share = torch.ones(count, device=real.device, dtype=real.dtype) if weights is None else weights
    pairs = share[:, None] * share[None, :] * (1 - torch.eye(count, device=real.device, dtype=real.dtype))
    smallest = torch.finfo(real.dtype).tiny
    scale = (_squared_distances(real, real).sum().detach() / max(count * (count - 1), 1)).clamp_min(smallest)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        distances = _squared_distances(a, b) / scale
        return torch.stack([torch.exp(-distances / width) for width in BANDWIDTHS]).mean(0)

    both = kernel(fake, fake) + kernel(real, real) - 2 * kernel(fake, real)  # pairs is symmetric
    return (pairs * both).sum() / pairs.sum().clamp_min(smallest)


def _weighted(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights[:, None] * (predicted - target).flatten(1)


def _mean_residual(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _weighted(predicted, target, weights).mean(0)


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """All squared distances (A, B); by differences, since the expansion loses digits where points are near each
    other."""
    return (a[:, None] - b[None]).square().sum(-1)
