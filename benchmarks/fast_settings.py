"""What each setting of `resources.fast` brings on a CPU (python -m benchmarks.fast_settings).

The engine's own sampler, from requests to uint8 pixels, one thread, in one process that keeps freed memory, as a worker
does: a batch with the setting and one without it, in turning order. "pixel difference" is the largest one of that
batch, of 255: a setting is exact in float32, so it must not exceed 2, which is what another batch size may change.
`model.dtype: bfloat16` stands beside them because a CPU that multiplies in bfloat16 gains most from it; it is no such
setting, draws other last bits and has no target. "seconds to compile" is the first batch, without anything kept from
earlier runs. Of the attention kernels only `math` differs on a CPU.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.peer_scripts import CASES, QUICK

MEASURED = {"digits": 12, "half a second": 5, "two steps": 2}  # cases of the peers, and their steps here
TOLERANCE = 2  # of 255
DTYPE = "bfloat16"
SETTINGS: dict[str, dict[str, Any]] = {
    "channels_last": {"channels_last": "on"},
    "fuse_qkv": {"fuse_qkv": True},
    "attention math": {"attention": "math"},
    "decode_batch 1": {"decode_batch": 1},  # what is unset at 256 pixels
    "decode_batch 16": {"decode_batch": 16},  # all at once, which is what is unset at 8 pixels
    "compile": {"compile": "default"},
    "compile, channels_last": {"compile": "default", "channels_last": "on"},
    DTYPE: {},
    f"{DTYPE}, compile, channels_last": {"compile": "default", "channels_last": "on"},
}


def make_sampler(case: str, folder: Path, batch: int, dtype: str, fast: dict[str, Any]) -> Any:
    """The engine's sampler of a case's checkpoint, with these settings."""
    from engine.diffusion import checkpoint
    from engine.diffusion.sampler import Sampler
    from engine.spec.recipe import FastSpec, GenerateSpec, ModelSpec

    told = CASES[case]
    found = checkpoint.inspect(ModelSpec(checkpoint=str(folder), dtype=dtype), told["size"])
    guidance = told.get("guidance_scale", 2.0)
    generate = GenerateSpec(
        num_inference_steps=MEASURED[case], guidance_scale=guidance, scheduler="dpmsolver++", visual_token="none"
    )
    sampler = Sampler(checkpoint.load(found, "cpu", dtype), generate, FastSpec(**fast))
    sampler.expect(batch)
    return sampler


def drawn(sampler: Any, batch: int) -> tuple[float, Any]:
    """Seconds of a batch, and its pixels (N, H, W, 3)."""
    import numpy as np

    from engine.diffusion.sampler import Request

    asked = [Request(f"photo of digit {n % 10}", n) for n in range(batch)]
    began = time.perf_counter()
    results = sampler.draw(asked)
    return time.perf_counter() - began, np.stack([one.pixels for one in results]).astype(int)


def one_setting(case: str, name: str, folder: Path, batch: int, plain: Any, count: int) -> list[pairs.Row]:
    """A setting against the sampler without it."""
    dtype = DTYPE if name.startswith(DTYPE) else "float32"
    other = make_sampler(case, folder, batch, dtype, SETTINGS[name])
    first, pixels = drawn(other, batch)
    difference = abs(pixels - drawn(plain, batch)[1]).max()
    sides = {"plain": lambda: drawn(plain, batch)[0], name: lambda: drawn(other, batch)[0]}
    taken = pairs.alternate(sides, count)
    gain, noise = pairs.ratio(taken["plain"], taken[name]), pairs.spread(taken["plain"])
    rows = [
        pairs.judged(case, f"times the images a second, {name}", gain, noise, None, seconds=taken),
        pairs.judged(
            case,
            f"pixel difference, {name}",
            float(difference),
            0.0,
            TOLERANCE if dtype == "float32" else None,
            at_most=True,
        ),
    ]
    if "compile" in name:
        compiling = first - statistics.median(taken[name])
        rows.append(pairs.judged(case, f"seconds to compile, {name}", compiling, 0.0, None))
    return rows


def measure(case: str, folder: Path, count: int, batch: int, names: Sequence[str]) -> list[pairs.Row]:
    """All settings of a case."""
    import torch

    from tests.support.checkpoints import write_checkpoint

    torch._dynamo.reset()
    told = CASES[case]
    checkpoint = write_checkpoint(folder / case.replace(" ", "-"), told["family"], **told["changes"])
    plain = make_sampler(case, checkpoint, batch, "float32", {})
    return [row for name in names for row in one_setting(case, name, checkpoint, batch, plain, count)]


def main() -> None:
    """Measure every case, print the table, write the JSON; exit status 1 where a setting is not exact."""
    arguments = pairs.parser(__doc__, pairs=9, cases=MEASURED).parse_args()
    import torch

    from engine.cluster.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()
    names = [name for name in SETTINGS if not (arguments.quick and "compile" in name)]
    rows: list[pairs.Row] = []
    with tempfile.TemporaryDirectory(prefix="fast-") as place:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(place, "compiled"))
        for case in arguments.case or MEASURED:
            count, batch = (1, QUICK["batch"]) if arguments.quick else (arguments.pairs, CASES[case]["batch"])
            rows += measure(case, Path(place), count, batch, names)
    pairs.finish("fast_settings", rows, arguments)


if __name__ == "__main__":
    main()
