"""What a CPU worker gains by keeping the memory that it frees (python -m benchmarks.freed_memory).

Two processes draw the same batches with stock diffusers, one thread each, in turning order: "kept" has called the
engine's
`keep_freed`, "handed back" has glibc's defaults, which give large blocks back to the kernel. "faults" are the minor
page faults of a batch. The pictures are compared: they must be equal to the byte.
"""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.peer_scripts import CASES
from benchmarks.peers import Work, open_pipeline

ROOT = Path(__file__).parents[1]
MEASURED = {"digits": 12, "two steps": 2, "half a second": 5}  # cases of the peers, and their steps here
BATCHES = 6


def child(kept: bool, order: str) -> None:
    """Draw so many batches for each line of standard input; answer seconds, page faults and a digest of the
    pictures."""
    import torch

    from engine.cluster.memory import keep_freed

    if kept and not keep_freed():
        raise RuntimeError("this C library keeps nothing")
    work = Work(**json.loads(order))
    pipeline = open_pipeline(work)
    told: dict[str, Any] = {"num_inference_steps": work.steps, "guidance_scale": work.guidance_scale}
    for line in sys.stdin:
        digest, faults, began = hashlib.sha256(), _faults(), time.perf_counter()
        for _ in range(int(line)):
            seeds = [torch.Generator().manual_seed(seed) for seed in range(work.batch)]
            prompts = ["photo of digit 3"] * work.batch
            drawn = pipeline(prompt=prompts, generator=seeds, output_type="pt", **told).images
            digest.update(drawn.numpy().tobytes())
        seconds = time.perf_counter() - began
        print(json.dumps([seconds, _faults() - faults, digest.hexdigest()]), flush=True)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Drawing:
    """A process that draws when it is asked."""

    def __init__(self, side: str, work: Work) -> None:
        command = [sys.executable, "-m", "benchmarks.freed_memory", "--child", side, json.dumps(work.__dict__)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def draw(self, batches: int) -> tuple[float, float, str]:
        """Seconds and page faults of a batch, and the digest of the pictures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()
        seconds, faults, digest = json.loads(self._process.stdout.readline())
        return seconds / batches, faults / batches, digest

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(name: str, folder: Path, count: int) -> list[pairs.Row]:
    """One case: both processes in turning order."""
    from tests.support.checkpoints import write_checkpoint

    case = CASES[name]
    checkpoint = write_checkpoint(folder / name.replace(" ", "-"), case["family"], **case["changes"])
    drawing = ("dpmsolver++", MEASURED[name], case.get("guidance_scale", 2.0), 1.0)
    work = Work(str(checkpoint), *drawing, case["size"], case["batch"], "jpg", photographs=False)
    sides = {side: Drawing(side, work) for side in ("kept", "handed back")}
    try:
        found = pairs.alternate({side: lambda one=one: one.draw(BATCHES) for side, one in sides.items()}, count)  # type: ignore[misc]
    finally:
        for one in sides.values():
            one.close()
    if len({digest for runs in found.values() for _, _, digest in runs}) != 1:
        raise RuntimeError("the pictures differ")
    seconds = {side: [run[0] for run in runs] for side, runs in found.items()}
    gain, noise = pairs.ratio(seconds["handed back"], seconds["kept"]), pairs.spread(seconds["handed back"])
    rows = [pairs.judged(name, "times the images a second", gain, noise, None, seconds=seconds)]
    for side, runs in found.items():
        faults = [run[1] for run in runs]
        rows.append(
            pairs.judged(name, f"faults a batch, {side}", statistics.median(faults), pairs.spread(faults), None)
        )
    return rows


def main() -> None:
    """Measure every case, print the table, write the JSON."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2] == "kept", sys.argv[3])
        sys.exit()
    arguments = pairs.parser(__doc__, pairs=7).parse_args()
    names = ("digits",) if arguments.quick else tuple(MEASURED)
    with tempfile.TemporaryDirectory(prefix="freed-") as place:
        rows = [row for name in names for row in measure(name, Path(place), 1 if arguments.quick else arguments.pairs)]
    pairs.finish("freed_memory", rows, arguments)


if __name__ == "__main__":
    main()
