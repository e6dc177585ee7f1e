"""Batch statistics over all workers: gathers tensors of every rank and sends gradients back to where they came from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from engine.training.setup import Place


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, place: Place) -> torch.Tensor:
        parts = [torch.empty_like(local) for _ in range(place.world_size)]
        dist.all_gather(parts, local.contiguous())
        ctx.rows = place.part(len(local) * place.world_size)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total[ctx.rows], None


def gather(local: torch.Tensor, place: Place) -> torch.Tensor:
    """(b, ...) of each rank to (b * world_size, ...), in rank order, with gradients.

    A loss of the gathered batch that every rank computes in full gets, after DistributedDataParallel has averaged, the
    gradient of one worker with the whole batch.
    """
    if place.world_size == 1:
        return local
    return _Gather.apply(local, place)
