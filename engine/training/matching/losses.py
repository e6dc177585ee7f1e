"""Distribution-matching terms: maximum mean discrepancy between what the generator predicts and what is real, batch by batch."""

from __future__ import annotations

import torch

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def residual(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over latent positions of the squared batch MEAN of weighted residuals: a linear-kernel MMD.

    `predicted`, `target`: (B, ...) noise or velocity; `weights`: (B,) min-SNR weights. Real-Fake (arXiv 2310.10402) sums over
    its batch of 8 where this takes the mean: see `released_weight`.
    """
    return _mean_residual(predicted, target, weights).square().mean()


def released_weight(weight: float, batch: int) -> float:
    """The weight on `residual` that equals `weight` on the released sum over `batch` images: 0.003 and 8 give 0.192."""
    return weight * batch**2


def residual_per_class(
    predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """`residual` of the images of each class by themselves, averaged over the batch's images; `labels`: (B,) int64."""
    same = (labels[:, None] == labels[None, :]).to(predicted.dtype)
    means = (same / same.sum(1, keepdim=True)) @ _weighted(predicted, target, weights)
    return means.square().mean()


def kernel_mmd(fake: torch.Tensor, real: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Squared MMD (V-statistic) of two sets under a mixture of RBF kernels (Gretton et al. 2012, JMLR 13, eq. 5).

    `fake`, `real`: (B, D), compared as sets; `weights`: (B,) >= 0, the share of each pair in both sets (None: equal). The
    mixture is the mean of exp(-d^2 / (s m)) over s in `BANDWIDTHS`, m being the mean squared distance of different real points.
    """
    count = len(real)
    share = torch.full((count,), 1 / count, device=real.device, dtype=real.dtype) if weights is None else weights
    share = share / share.sum()
    scale = _squared_distances(real, real).sum().detach() / max(count * (count - 1), 1)
    signed = torch.cat([share, -share])
    both = torch.cat([fake, real])
    distances = _squared_distances(both, both) / scale.clamp_min(torch.finfo(real.dtype).tiny)
    kernel = torch.stack([torch.exp(-distances / width) for width in BANDWIDTHS]).mean(0)
    return signed @ kernel @ signed


def _weighted(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights[:, None] * (predicted - target).flatten(1)


def _mean_residual(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _weighted(predicted, target, weights).mean(0)


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """All squared distances (A, B); by differences, since the expansion loses digits where points are near each other."""
    return (a[:, None] - b[None]).square().sum(-1)
