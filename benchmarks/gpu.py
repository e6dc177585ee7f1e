"""What the engine reaches on one CUDA device: share of the matmul peak, switches, the script (python -m benchmarks.gpu
--part sd15).

Models have the published shapes and random weights (benchmarks/gpumodels.py), so nothing is downloaded. Parts, each
below ten minutes:

- `sd15`, `sdxl`, `dit`: images a second of the engine's sampler (prompt to uint8 pixels on the host), bfloat16, guided,
  over batch sizes; its FLOPs, counted on meta tensors, over the bf16 matmul rate (8192^3) of the same run; and the best
  batch once more with channels_last and a compiled denoiser, compiling given apart.
- `switches`: each fast switch of the denoiser alone, in pairs with eager; and whether it is exact: in float32 against
  eager float32 within 1e-3, in bfloat16 no further from eager float32 than twice what eager bfloat16 is.
- `scripts`: the whole way to the disk against the Real-Fake script (benchmarks/gpuscripts.py).

Without a CUDA device nothing is measured; `--quick` runs every part on the CPU with tiny shapes and without compiling,
to see that it works. Each part writes a file into the folder `--results`, else $OUT, else benchmarks/results.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks import gpumodels, pairs
from benchmarks.machine import machine

PARTS = ("sd15", "sdxl", "dit", "switches", "scripts")
REPEATS = 3
EXACT, TWICE = 1e-3, 2.0
SWITCHES = ("channels_last", "fuse_qkv", "compile", "sdpa flash", "sdpa cudnn", "sdpa efficient", "sdpa math")


def matmul_peak(device: str, side: int) -> float:
    """bf16 matmul FLOP/s: the fastest of ten products of random matrices, each long enough to be timed."""
    import torch

    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    return max(2 * side**3 / seconds(lambda: a @ b, device) for _ in range(10))


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: str) -> float:
    """Wall time of one call, the device's work included."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def sampler(kind: str, pipeline: Any, steps: int) -> Any:
    """The engine's sampler around a pipeline."""
    from engine.diffusion.sampler import Sampler
    from engine.spec.recipe import GenerateSpec

    told = GenerateSpec(num_inference_steps=steps, guidance_scale=4.0, scheduler="dpmsolver++", visual_token="none")
    return Sampler(pipeline, told)


def requests(count: int) -> list[Any]:
    """So many requests, with two prompts and seeds of their own."""
    from engine.diffusion.sampler import Request

    return [Request(f"photo of digit {('one', 'two')[n % 2]}", n, label=n % 2) for n in range(count)]


def part_model(kind: str, device: str, tiny: bool) -> dict[str, Any]:
    """Images a second over batch sizes, eager and with the switches that help, and their share of the matmul peak."""
    import torch

    shape, dtype = gpumodels.shape(kind, tiny), "float32" if device == "cpu" else "bfloat16"
    peak, cost = matmul_peak(device, 256 if tiny else 8192), gpumodels.flops(kind, shape.steps, tiny)
    pipeline = gpumodels.pipeline(kind, device, dtype, tiny)
    drawing = sampler(kind, pipeline, shape.steps)
    rows = [row_of("eager", drawing, n, device, cost["image"], peak) for n in shape.batches]
    best = max(rows, key=lambda row: row["images_per_s"])["batch"]
    denoiser = drawing.pipeline.transformer if kind == "dit" else drawing.pipeline.unet
    if kind != "dit":
        denoiser.to(memory_format=torch.channels_last)
    drawing.pipeline.vae.to(memory_format=torch.channels_last)
    if not tiny:
        denoiser.compile()
    compiling = seconds(lambda: drawing.draw(requests(best)), device)
    rows.append(row_of("compiled, channels_last", drawing, best, device, cost["image"], peak))
    last = max(rows, key=lambda row: row["share"])
    judged = pairs.verdict(last["share"], last["spread"] * last["share"], shape.target)
    facts = {"model": shape.name, "size": shape.size, "steps": shape.steps, "dtype": dtype, "flops": cost}
    return facts | {"peak": peak, "compile_s": compiling, "target": shape.target, "verdict": judged, "results": rows}


def row_of(name: str, drawing: Any, batch: int, device: str, flops: float, peak: float) -> dict[str, Any]:
    """One warm-up and some repeats of a batch."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    asked = requests(batch)
    drawn = drawing.draw(asked)
    assert all(one.pixels is not None for one in drawn), drawn[0].reason
    taken = [seconds(lambda: drawing.draw(asked), device) for _ in range(REPEATS)]
    rate = batch / statistics.median(taken)
    row = {
        "how": name,
        "batch": batch,
        "images_per_s": rate,
        "tflops": flops * rate / 1e12,
        "share": flops * rate / peak,
        "spread": pairs.spread(taken),
        "gib": torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def switched(denoiser: Any, name: str) -> Any:
    """A copy of the denoiser with one switch; attention kernels are chosen by `kernel`."""
    import torch

    made = copy.deepcopy(denoiser)
    if name == "channels_last":
        made.to(memory_format=torch.channels_last)
    elif name == "fuse_qkv":
        made.fuse_qkv_projections()
    elif name == "compile":
        made.compile()
    return made


def kernel(name: str) -> AbstractContextManager[Any]:
    """The context of a switch that chooses the attention kernel; of another switch, none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {
        "sdpa flash": SDPBackend.FLASH_ATTENTION,
        "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa math": SDPBackend.MATH,
    }
    return sdpa_kernel(kernels[name]) if name in kernels else nullcontext()


def part_switches(device: str, tiny: bool) -> dict[str, Any]:
    """Each switch of the SD-1.5 U-Net alone: speed against eager in turning order, and exactness."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch, count = (2, 2) if tiny else (32, 5)
    exact = gpumodels.pipeline("sd15", device, "float32", tiny).unet
    low = copy.deepcopy(exact).to(torch.bfloat16)
    with torch.inference_mode():
        reference = answer(exact, device, torch.float32)
        eager_error = error(answer(low, device, torch.bfloat16), reference)
        rows = [
            one_switch(name, exact, low, (device, batch, count), reference, eager_error)
            for name in SWITCHES
            if not (tiny and name == "compile")
        ]
    return {"model": "sd15 U-Net", "batch": batch, "eager_bf16_error": eager_error, "results": rows}


def answer(denoiser: Any, device: str, dtype: Any) -> Any:
    """The denoiser's output for two fixed inputs, float32."""
    return gpumodels.forward("sd15", denoiser, 2, device, dtype)().float()


def error(found: Any, reference: Any) -> float:
    """Relative distance of two tensors."""
    return float((found - reference).norm() / reference.norm())


def one_switch(
    name: str, exact: Any, low: Any, how: tuple[str, int, int], reference: Any, eager_error: float
) -> dict[str, Any]:
    """A row: ratio to eager, its noise, errors, and whether they are within the tolerances; a switch that cannot be
    used says why."""
    import torch

    device, batch, count = how
    row: dict[str, Any] = {"switch": name}
    try:
        made = switched(low, name)
        fast = gpumodels.forward("sd15", made, batch, device, torch.bfloat16)
        eager = gpumodels.forward("sd15", low, batch, device, torch.bfloat16)
        with kernel(name):
            row["first_s"] = seconds(fast, device)
            row["bf16_error"] = error(answer(made, device, torch.bfloat16), reference)
            fast()  # the small batch may have made it compile again
        eager()
        plain: list[float] = []
        taken: list[float] = []
        for _ in range(count):
            plain.append(seconds(eager, device))
            with kernel(name):
                taken.append(seconds(fast, device))
    except Exception as failure:
        return row | {"verdict": f"cannot be used: {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"}
    try:
        with kernel(name):
            row["fp32_error"] = error(answer(switched(exact, name), device, torch.float32), reference)
    except RuntimeError:
        row["fp32_error"] = None  # a kernel for half precision only
    close = row["fp32_error"] is None or row["fp32_error"] <= EXACT
    row["ratio"], row["spread"] = pairs.ratio(plain, taken), pairs.spread(plain)
    row["verdict"] = "exact" if close and row["bf16_error"] <= TWICE * eager_error else "missed: not exact"
    print(row, file=sys.stderr, flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, write a JSON for each; exit status 1 where a target or an exactness was missed."""
    from benchmarks.gpuscripts import part_scripts

    parser = pairs.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them where none is named")
    arguments = parser.parse_args(argv)
    import torch

    if not arguments.quick and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (--quick tries the parts on the CPU)")
        return
    device, missed = "cpu" if arguments.quick else "cuda", False
    folder = arguments.results or Path(os.environ.get("OUT", pairs.FOLDER))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        kind: lambda kind=kind: part_model(kind, device, arguments.quick)  # type: ignore[misc]
        for kind in gpumodels.SHAPES
    }
    parts["switches"] = lambda: part_switches(device, arguments.quick)
    parts["scripts"] = lambda: part_scripts(device, arguments.quick)
    for part in arguments.part or PARTS:
        began = time.monotonic()
        found = {"part": part, "seconds": 0.0, **parts[part]()} | {"seconds": time.monotonic() - began}
        print(json.dumps({key: value for key, value in found.items() if key != "results"}))
        print("\n".join(map(str, found["results"])), flush=True)
        verdicts = [found.get("verdict", "")] + [row.get("verdict", "") for row in found["results"]]
        missed |= any(one.startswith("missed") for one in verdicts)
        if arguments.results or not arguments.quick:
            facts = machine(f"gpu --part {part}" + (" --quick" if arguments.quick else ""))
            pairs.keep(folder / f"gpu_{part}.json", {"machine": facts, **found})
    sys.exit(missed and not arguments.quick)


if __name__ == "__main__":
    main()
