"""Random draws that are pure functions of (seed, stage, step), so that a resumed run repeats an unbroken one."""

from __future__ import annotations

import torch

from engine.seeds import derive


def generator(seed: int, stage: str, step: int) -> torch.Generator:
    """The CPU generator of one training step; equal on every worker."""
    return torch.Generator().manual_seed(derive(seed, stage, "step", step))


def batch_indices(seed: int, stage: str, step: int, batch: int, count: int) -> torch.Tensor:
    """Rows (batch,) int64 of the global batch of `step`.

    The steps walk through one random permutation of the `count` images after another: every image is seen equally
    often, and any step can be asked for alone.
    """
    first, last = step * batch, (step + 1) * batch
    rounds = range(first // count, -(-last // count))
    order = [
        torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, stage, "round", r))) for r in rounds
    ]
    return torch.cat(order)[first - rounds[0] * count :][:batch]


def class_batch_indices(seed: int, stage: str, step: int, batch: int, labels: torch.Tensor) -> torch.Tensor:
    """Rows (batch,) int64 of the global batch of `step`, in pairs of one class; `batch` is even, `labels` (N,) int64.

    The steps walk through random pairings of the images after each other, in random order: every image is seen equally
    often, but for one of a class of odd size, which is paired with another of it (an only one with itself).
    """
    count = int(((torch.bincount(labels) + 1) // 2).sum())
    first, last = step * batch // 2, (step + 1) * batch // 2
    rounds = range(first // count, -(-last // count))
    order = torch.cat([_pairs(labels, derive(seed, stage, "pairs", r)) for r in rounds])
    return order[first - rounds[0] * count :][: batch // 2].reshape(-1)


def _pairs(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """(P, 2) rows of equal labels, in random order."""
    own = torch.Generator().manual_seed(seed)
    found = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=own)]
        found.append(torch.cat([rows, rows[: len(rows) % 2]]).reshape(-1, 2))
    pairs = torch.cat(found)
    return pairs[torch.randperm(len(pairs), generator=own)]
