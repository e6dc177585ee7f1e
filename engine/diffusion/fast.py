"""Ways to run the same mathematics faster: memory layout, fused projections, the attention kernel, compilation."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.diffusion.steps import deep_blocks
from engine.errors import ClusterError, ConfigError
from engine.spec.recipe import FastSpec
from engine.storage import node_cache

COMPILED = "inductor"  # folder in the node's cache
LARGE = 256  # pixels a side: from here on a VAE's activations of several images fall out of a CPU's caches
_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def prepare(pipeline: Any, denoiser: Any, fast: FastSpec) -> None:
    """Lay out and fuse the weights of a loaded pipeline; ConfigError where the denoiser's projections cannot be fused.

    `channels_last: auto` is on for CUDA, whose convolutions in half precision are made for it, and off for CPUs.
    """
    on_cuda = denoiser.device.type == "cuda"
    if fast.channels_last == "on" or (fast.channels_last == "auto" and on_cuda):
        for model in (denoiser, pipeline.vae):
            model.to(memory_format=torch.channels_last)
    if fast.fuse_qkv:
        _check_fusable(denoiser)
        denoiser.fuse_qkv_projections()


def _check_fusable(denoiser: Any) -> None:
    what = None
    if not hasattr(denoiser, "fuse_qkv_projections"):
        what = f"diffusers cannot fuse the projections of {type(denoiser).__name__}"
    elif any("lora_" in name for name, _ in denoiser.named_parameters()):
        what = "a LoRA in bfloat16 stays beside the weights, and fused projections would leave it out"
    if what is not None:
        raise ConfigError("resources.fast.fuse_qkv", what, "set it to false")


def vae_batch(fast: FastSpec, device: str, side: int) -> int | None:
    """How many images of so many pixels a side the VAE takes at a time, None: all of a batch.

    What `decode_batch` says, else one large image on a CPU, which takes less time and memory than several at once; what
    that brings to a whole batch is in benchmarks/fast_settings.py.
    """
    if fast.decode_batch is None and device == "cpu" and side >= LARGE:
        return 1
    return fast.decode_batch


def attention(kind: str) -> AbstractContextManager[None]:
    """The kernel that attention tries first; the others follow where it lacks the dtype or the width, but for
    `math`."""
    if kind == "auto":
        return nullcontext()
    first = _KERNELS[kind]
    if kind == "math":
        return sdpa_kernel(first)
    return sdpa_kernel([first, *(other for other in _KERNELS.values() if other is not first)], set_priority=True)


def compile_denoiser(denoiser: Any, mode: str, *, by_block: bool = False) -> None:
    """Compile the denoiser's arithmetic for fixed shapes; hooks stay outside. `mode` as in FastSpec, not `off`.

    What is compiled is kept in the node's cache, for all actors and later runs. `by_block`: each block of a U-Net by
    itself, so that steps may leave some out.
    """
    keep_compiled()
    targets = [*deep_blocks(denoiser), denoiser.down_blocks[0], denoiser.up_blocks[-1]] if by_block else [denoiser]
    for module in targets:
        module.forward = torch.compile(module.forward, mode=mode, dynamic=False)
    if mode == "reduce-overhead":
        # CUDA graphs write each result to the same memory, and samplers keep earlier ones.
        denoiser.register_forward_hook(lambda module, args, output: (output[0].clone(), *output[1:]))


def keep_compiled() -> None:
    """Have what is compiled kept in the node's cache, unless the environment names another folder."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(node_cache.folder() / COMPILED))


def raise_if_not_compiled(error: Exception, key: str = "resources.fast.compile", fix: str = "set it to off") -> None:
    """Turn an error of the compiler into a ClusterError of one line about the setting `key`."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        first = next(iter(str(error).splitlines()), "")
        what = f"the network cannot be compiled here: {type(error).__name__}: {first}"[:300]
        raise ClusterError(key, what, fix) from error
