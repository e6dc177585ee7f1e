"""The batch size that a device's memory allows: found once by trying, then remembered on the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine import __version__
from engine.errors import ClusterError
from engine.spec import RunSpec
from engine.storage import notes

ON_CPU = 16
MOST = 1024
HEADROOM = 0.1  # of the memory, for what a trial does not see
NOTE = "batch-size"


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest power of two, at most `most`, up to which all powers of two fit; 0 where not even 1 does."""
    size, following = 0, 1
    while following <= most and fits(following):
        size, following = following, 2 * following
    return size


def remembered(key: Mapping[str, object], fits: Callable[[int], bool]) -> int:
    """`largest`, tried once for a key on this node. ClusterError where a single image does not fit."""
    noted = notes.read(NOTE, key)
    if isinstance(noted, int) and 1 <= noted <= MOST:
        return noted
    size = largest(fits)
    if not size:
        fix = "set model.dtype to bfloat16 or draw smaller images"
        raise ClusterError("resources.batch_size", "a single image does not fit in the device's memory", fix)
    notes.write(NOTE, key, size)
    return size


def choose(spec: RunSpec, device: str, checkpoint: str, lora: str | None, fits: Callable[[int], bool]) -> int:
    """The recipe's batch size, or the one that `auto` stands for: 16 on a CPU, on CUDA what the memory allows.

    `checkpoint` and `lora` are digests; `fits` tells whether a batch of a size can be drawn. Batches are cut from
    shards, so that no size is above `generate.shard_size`.
    """
    asked, shard = spec.resources.batch_size, spec.generate.shard_size
    if asked != "auto":
        return min(asked, shard)
    if not device.startswith("cuda"):
        return min(ON_CPU, shard)
    share = min(1.0, spec.resources.gpus_per_actor)
    gpu = torch.cuda.get_device_properties(device)
    key = {
        "checkpoint": checkpoint,
        "lora": lora,
        "gpu": [gpu.name, gpu.total_memory, share],
        "versions": [__version__, torch.__version__],
        **settings(spec),
    }
    with _limited(device, share * (1 - HEADROOM)):
        return min(remembered(key, fits), shard)


def settings(spec: RunSpec) -> dict[str, object]:
    """What of a recipe decides how much memory an image takes."""
    generate = spec.generate
    return {
        "size": spec.images.size,
        "dtype": spec.model.dtype,
        "guided": generate.guidance_scale > 1,
        "from_image": generate.strength < 1,
        "cache_interval": generate.cache_interval,
        "fast": spec.resources.fast.model_dump(mode="json"),
    }


@contextmanager
def _limited(device: str, share: float) -> Iterator[None]:
    """This process may take no more than a share of the GPU's memory while the block runs."""
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
