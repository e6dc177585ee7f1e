"""Images a second, durable on disk, of the engine and of what people run instead (python -m benchmarks.peer_scripts).

The engine is the whole generation job with one actor of one thread: from the first shard's record to the last one's,
and the sealing of the set. The peers (benchmarks/peers.py) are the Real-Fake script, which saves a file an image, and
Ray Data's `map_batches` with
`write_webdataset`; each saves JPEG and PNG. All have the same weights, prompts, seeds, sampler, steps, batch, float32
and one thread of torch for the model; the engine's encoder and Ray Data's writer run beside it, on another core if
there is one. Left out on all sides: starting Ray and processes, loading the model, and a first batch (of the engine and
its pool: a first shard). Sides run one after another in turning order, for some rounds. The engine also fsyncs every
shard, checks every image and keeps records; the peers do not.

What can be gained is what the peers do on the host between two batches, so it is bounded by its share of a batch:
nothing with 12 denoising steps at 8 pixels, much where few steps make a large image. "bound" is the peer against the
model alone, in the script's
process: the same batches from encoded prompts and decoded images to floats, with no work on the host. An engine that
computes in the same way on the same core and does all else for nothing is as much faster than the peer; what is above
the bound comes from computing in another way (freed memory that is kept, large images one at a time through the VAE).
Targets are therefore judged in the few-step and img2img cases only; the others are reported. Where "photographs" is set
the VAE's answers are replaced, after its work, by crops of real photographs on every side, as pictures of random
weights cost a codec another time than real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.generation_overhead import steps_for_half_a_second
from benchmarks.machine import machine
from benchmarks.pairs import verdict
from benchmarks.peers import Item, Script, Work, ray_data
from benchmarks.photographs import develop, write_folder
from engine.cluster.session import session
from engine.generation import actor_pool, generation_job
from engine.generation.actor import Order, ShardActor, build_worker
from engine.generation.sample_plan import Plan
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import Output, prepare

RESULTS = Path(__file__).parent / "results" / "peer_scripts.json"
FORMATS = ("jpg", "png")
SIDES = ("engine", "script", "ray data")
TARGETS = {("script", "jpg"): 1.25, ("script", "png"): 1.5, ("ray data", "jpg"): 1.1, ("ray data", "png"): 1.1}
JPEG_QUALITY = 75  # PIL's default, which the peers use
CODECS = {
    ("engine", "jpg"): f"simplejpeg quality {JPEG_QUALITY}, 4:2:0 (4:4:4 up to 64 pixels)",
    ("engine", "png"): "PIL PNG level 6",
    ("peer", "jpg"): "PIL JPEG default: quality 75, 4:2:0",
    ("peer", "png"): "PIL PNG default: level 6",
}
SMALL = {"vae": (4, 4, 4, 4, 8, 8), "groups": 4, "sample": 8, "clip": True}  # a VAE x32: 256 pixels
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "about": "12 steps at 8 pixels: the model is nearly all of it",
        "family": "digits",
        "changes": {"unet": (64, 128), "head_dim": 16},
        "size": 8,
        "batch": 16,
        "batches": 8,
        "steps": 12,
    },
    "half a second": {
        "about": "batches of half a second at 256 pixels",
        "family": "sd15",
        "changes": SMALL | {"unet": (64, 128, 128, 128)},
        "size": 256,
        "batch": 8,
        "batches": 6,
        "steps": 0,
        "photographs": True,
    },
    "two steps": {
        "about": "2 steps without guidance at 256 pixels, small U-Net and VAE",
        "family": "sd15",
        "changes": SMALL,
        "size": 256,
        "batch": 8,
        "batches": 12,
        "steps": 2,
        "guidance_scale": 1.0,
        "photographs": True,
        "judged": True,
    },
    "img2img": {
        "about": "4 steps at strength 0.75 from JPEG files of 500 x 375 at 256 pixels, small U-Net and VAE",
        "family": "sd15",
        "changes": SMALL,
        "size": 256,
        "batch": 8,
        "batches": 10,
        "steps": 4,
        "guidance_scale": 1.0,
        "strength": 0.75,
        "photographs": True,
        "judged": True,
    },
}
QUICK = {"batches": 2, "batch": 4, "shards": 1}


class DevelopedActor(ShardActor):
    """The engine's actor, whose VAE answers with photographs."""

    @staticmethod
    def _build(order: Order, progress: Any = None) -> Any:
        worker = build_worker(order, progress)
        develop(worker.sampler.pipeline.vae, order.spec.images.size)
        return worker


def make_spec(case: dict[str, Any], checkpoint: Path, real: Path) -> RunSpec:
    """A run of one actor: a shard to warm up, and those that count."""
    shard, strength = case["batch"] * case["batches"], case.get("strength", 1.0)
    return validate(
        {
            "name": "peers",
            "source": {"kind": "folder", "path": str(real)} if strength < 1 else {"kind": "digits"},
            "images": {"size": case["size"]},
            "split": {"train": 100, "validation": 0, "test": 100},
            "model": {"checkpoint": str(checkpoint)},
            "conditions": {"prompt": "photo of {class}"},
            "generate": {
                "count": shard * (case.get("shards", 3) + 1),
                "shard_size": shard,
                "num_inference_steps": case["steps"],
                "guidance_scale": case.get("guidance_scale", 2.0),
                "strength": strength,
                "pairing": "own" if strength < 1 else "none",
                "visual_token": "none",
                "quality": JPEG_QUALITY,
            },
            "resources": {"device": "cpu", "actors": 1, "batch_size": case["batch"], "threads": 1},
        }
    )


def items_of(output: Output, real: Path) -> list[Item]:
    """What the engine plans, for the peers."""
    spec, conditions = output.spec, output.conditions
    plan = Plan(spec, conditions.labels, conditions.class_names)
    rows = plan.rows(0, plan.count)
    paths = [str(real / uri) for uri in output.catalog.split("train")["uri"].to_pylist()]
    return [
        Item(conditions.prompts[anchor], seed, label, paths[init] if init >= 0 else "")
        for anchor, seed, label, init in zip(
            *(c.tolist() for c in (rows.anchor, rows.seed, rows.label, rows.init_row)), strict=True
        )
    ]


def run_engine(output: Output, folder: Path, format: str, photographs: bool) -> float:
    """The whole job in a new output; seconds from the first shard's record to the last one's, and of the sealing."""
    generate = output.spec.generate.model_copy(update={"format": format})
    store = open_store(str(folder))
    for entry in output.store.list():
        if entry.name.startswith(("catalog", "conditions")):
            store.create(entry.name, output.store.read(entry.name))
    fresh = dataclasses.replace(output, spec=output.spec.model_copy(update={"generate": generate}), store=store)
    sealing: list[float] = []
    seal = generation_job.manifest.finalise

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        made = seal(*arguments)
        sealing.append(time.perf_counter() - began)
        return made

    actor = DevelopedActor if photographs else ShardActor
    with (
        mock.patch.object(actor_pool, "ShardActor", actor),
        mock.patch.object(generation_job.manifest, "finalise", timed),
    ):
        fresh.generate()
    finished = sorted(json.loads(path.read_text())["finished"] for path in (folder / "data").glob("peers-*.json"))
    return finished[-1] - finished[0] + sealing[0]


def check_files(folder: Path, format: str, count: int, size: int) -> float:
    """Every image is there and can be opened; mean KiB of one."""
    import io
    import tarfile

    from PIL import Image

    found = [path.read_bytes() for path in folder.rglob(f"*.{format}")]
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = [member for member in tar.getmembers() if member.name.endswith(f".{format}")]
            found += [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert len(found) == count, f"{len(found)} of {count} images in {folder}"
    assert {Image.open(io.BytesIO(data)).size for data in found} == {(size, size)}
    return statistics.mean(map(len, found)) / 1024


def measure(name: str, case: dict[str, Any], rounds: int, formats: Sequence[str]) -> list[dict[str, Any]]:
    """Run one case, inside a session: every side in turning order, `rounds` times; a row for each peer and format."""
    import ray

    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        folder = Path(place)
        real = write_folder(folder / "real") if case.get("strength", 1.0) < 1 else folder
        checkpoint = write_checkpoint(folder / "model", case["family"], **case["changes"])
        case = {**case, "steps": case["steps"] or steps_for_half_a_second(checkpoint, case)}
        output = prepare(folder / "out", make_spec(case, checkpoint, real))
        planned, shard = items_of(output, real), case["batch"] * case["batches"]
        items, warm = planned[shard:], planned[: case["batch"]]
        works = {format: work_of(output, checkpoint, format, bool(case.get("photographs"))) for format in formats}
        script = ray.remote(num_cpus=0)(Script).remote(works[formats[0]], warm)
        ray.get(script.ready.remote())
        shards = case.get("shards", 3)

        def script_side(work: Work, where: Path) -> float:
            where.mkdir()
            return ray.get(script.run.remote(str(where), items, work.format))

        def ray_side(work: Work, where: Path) -> float:
            where.mkdir()
            return ray_data(work, items, where, shards, warm)

        sides: dict[str, Callable[[Work, Path], float]] = {
            "engine": lambda work, where: run_engine(output, where, work.format, work.photographs),
            "script": script_side,
            "ray data": ray_side,
        }
        seconds: dict[str, list[dict[str, float]]] = {format: [] for format in formats}
        sizes: dict[tuple[str, str], float] = {}
        for number, format in itertools.product(range(rounds), formats):
            one: dict[str, float] = {}
            for side in SIDES if number % 2 else reversed(SIDES):
                where = folder / f"{side}-{format}-{number}".replace(" ", "-")
                one[side] = sides[side](works[format], where)
                count = len(planned if side == "engine" else items)
                sizes[side, format] = check_files(where, format, count, case["size"])
            one["model alone"] = ray.get(script.bare.remote(items))
            seconds[format].append(one)
            print(f"{name}, {format}, round {number + 1}: {one}", file=sys.stderr, flush=True)
        ray.kill(script)
    return [
        {"case": name, "about": case["about"], **result(case, len(items), peer, format, seconds[format], sizes)}
        for format, peer in itertools.product(formats, SIDES[1:])
    ]


def work_of(output: Output, checkpoint: Path, format: str, photographs: bool) -> Work:
    """The peers' side of a spec."""
    generate, size, batch = output.spec.generate, output.spec.images.size, output.spec.resources.batch_size
    drawing = (generate.scheduler, generate.num_inference_steps, generate.guidance_scale, generate.strength)
    return Work(str(checkpoint), *drawing, size, batch, format, photographs)


def result(
    case: dict[str, Any],
    images: int,
    peer: str,
    format: str,
    seconds: list[dict[str, float]],
    sizes: dict[tuple[str, str], float],
) -> dict[str, Any]:
    """Medians over rounds; "spread" is how far one run of the peer differs from the next one of the same."""
    ratio = statistics.median(one[peer] / one["engine"] for one in seconds)
    theirs = [one[peer] for one in seconds]
    spread = statistics.median(abs(b / a - 1) for a, b in itertools.pairwise(theirs)) if len(theirs) > 1 else 1.0
    target = TARGETS[peer, format]
    return {
        "peer": peer,
        "format": format,
        "batch": case["batch"],
        "steps": case["steps"],
        "images": images,
        "rounds": len(seconds),
        "engine_images_per_s": images / statistics.median(one["engine"] for one in seconds),
        "peer_images_per_s": images / statistics.median(theirs),
        "engine_codec": CODECS["engine", format],
        "peer_codec": CODECS["peer", format],
        "engine_kib": sizes["engine", format],
        "peer_kib": sizes[peer, format],
        "ratio": ratio,
        "spread": spread,
        "bound": statistics.median(one[peer] / one["model alone"] for one in seconds),
        "target": target,
        "judged": case.get("judged", False),
        "verdict": verdict(ratio, spread, target),
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as text."""
    head = (
        f"{'case':14} {'peer':8} {'as':3} {'KiB':>6} {'engine/s':>9} {'peer/s':>8} "
        f"{'ratio':>6} {'bound':>6} {'target':>6} {'noise':>6}  verdict"
    )
    lines = [
        f"{row['case']:14} {row['peer']:8} {row['format']:3} {row['peer_kib']:6.1f} {row['engine_images_per_s']:9.2f} "
        f"{row['peer_images_per_s']:8.2f} {row['ratio']:6.3f} {row['bound']:6.3f} "
        f"{row['target']:6.2f} {row['spread']:6.3f}  {row['verdict']}"
        f"{'' if row['judged'] else ' (not judged: the model hides it)'}"
        for row in rows
    ]
    about = dict.fromkeys(f"{row['case']}: {row['about']}, batch {row['batch']}" for row in rows)
    codecs = [f"{side} {format}: {codec}" for (side, format), codec in CODECS.items()]
    return "\n".join([*about, *codecs, head, *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case, print a table, write the JSON; exit status 1 where a judged target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to see that it works; writes nothing by itself"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args(argv)
    rounds, chosen = arguments.rounds, {name: CASES[name] for name in arguments.case or CASES}
    if arguments.quick:
        rounds, chosen = 1, {name: case | QUICK for name, case in chosen.items()}
    rows: list[dict[str, Any]] = []
    with session(make_spec({**CASES["digits"], "steps": 1}, Path("/none"), Path("/none")).resources):
        for name, case in chosen.items():
            rows += measure(name, case, rounds, arguments.format or FORMATS)
        facts = machine("peer_scripts")
    print(table(rows))
    out = arguments.out or (None if arguments.quick else RESULTS)
    if out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"machine": facts, "results": rows}, indent=1) + "\n")
    sys.exit(any(row["judged"] and row["verdict"] == "missed" for row in rows))


if __name__ == "__main__":
    main()
