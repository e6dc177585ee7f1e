"""The losses of the stages before the denoiser in closed form."""

from __future__ import annotations

import torch
from torch.nn import functional


def info_nce(images: torch.Tensor, texts: torch.Tensor, groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric contrastive loss for pairs that may repeat: every pair of one group is a positive.

    `images`, `texts`: (B, D) unit vectors; `groups`: (B,) int64, equal where the texts are equal; `scale`: the inverse
    temperature. Each row's cross entropy is taken against the uniform distribution over its positives (arXiv
    2004.11362, eq. 2). With all groups different it is the loss of CLIP (arXiv 2103.00020, figure 3).
    """
    logits = scale * images @ texts.T
    positive = (groups[:, None] == groups[None, :]).to(logits.dtype)
    target = positive / positive.sum(1, keepdim=True)
    rows = -(target * functional.log_softmax(logits, dim=1)).sum(1).mean()
    columns = -(target * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
    return (rows + columns) / 2


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss (arXiv 2002.05709, eq. 1): each of 2B views against its partner, all others of both sets being
    negatives.

    `first`, `second`: (B, D) projections of two views of the same images, of any length; cosine similarity is what
    counts.
    """
    views = functional.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return functional.cross_entropy(logits, partner)


def kl_per_dimension(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) averaged over all dimensions, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
