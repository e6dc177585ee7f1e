"""Approximations that act on single denoising steps: guidance inside an interval only, and deep U-Net features that are
kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch


@contextmanager
def guided_within(denoiser: Any, interval: tuple[float, float], steps: Callable[[], int]) -> Iterator[None]:
    """While the block runs, guidance acts on step i of n (from 0) where interval[0] <= i / n < interval[1].

    Kynkäänniemi et al. 2024, arXiv 2404.07724, by steps instead of noise levels. `steps` tells n once the sampling
    runs. On the other steps only the conditional half of the batch, the second, is computed; given for both halves, it
    makes any guidance scale give the conditional prediction. The denoiser must be called with `return_dict=False`.
    """
    number, conditional = count(), False

    def before(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any] | None:
        nonlocal conditional
        conditional = not interval[0] <= next(number) / steps() < interval[1]
        if not conditional:
            return None
        rows = len(args[0] if args else kwargs["hidden_states"])
        return tuple(_second_half(value, rows) for value in args), _second_half(kwargs, rows)

    def after(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (torch.cat([output[0], output[0]]),) if conditional else None

    handles = [denoiser.register_forward_pre_hook(before, with_kwargs=True), denoiser.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _second_half(value: Any, rows: int) -> Any:
    if isinstance(value, dict):
        return {name: _second_half(inner, rows) for name, inner in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
        return value[rows // 2 :]
    return value


def deep_blocks(unet: Any) -> list[Any]:
    """All blocks of a U-Net but those at the full resolution, the first and the last; some U-Nets have none in the
    middle."""
    middle = [] if unet.mid_block is None else [unet.mid_block]
    return [*unet.down_blocks[1:], *middle, *unet.up_blocks[:-1]]


@contextmanager
def deep_features_kept(unet: Any, interval: int) -> Iterator[None]:
    """While the block runs, the deep blocks are computed in every `interval`-th step and give the same output until the
    next.

    DeepCache (Ma et al. 2023, arXiv 2312.00858) with its branch at the first block. A batch of another shape than that
    of the step before, as where guidance begins or ends, is computed whole.
    """
    kept: dict[int, Any] = {}
    shape, age = torch.Size(), 0

    def before(module: Any, args: tuple[Any, ...]) -> None:
        nonlocal shape, age
        age = (age + 1) % interval if args[0].shape == shape else 0
        shape = args[0].shape
        if age == 0:
            kept.clear()

    def run(number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if number not in kept:
            kept[number] = forward(*args, **kwargs)
        return kept[number]

    blocks = deep_blocks(unet)
    own = [vars(block).get("forward") for block in blocks]
    handle = unet.register_forward_pre_hook(before)
    try:
        for number, block in enumerate(blocks):
            block.forward = partial(run, number, block.forward)
        yield
    finally:
        handle.remove()
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
