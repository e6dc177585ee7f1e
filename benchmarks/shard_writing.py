"""Shards a second of the engine's writer, a plain write of the same bytes, and webdataset's TarWriter (python -m
benchmarks.shard_writing).

A shard is what a run writes: random bytes as JPEG, with cls, json and txt. "engine" is `ShardBuilder`, SHA-256, the
exclusive durable publish of the tar (file, link and folder synced) and of its record. "raw" writes the finished tar's
bytes to a new file and syncs it: the limit of the disk, which the engine is compared with in wall time. "webdataset" is
`TarWriter` (members encoded before, its fastest way) into a new file and a sync, compared in CPU time of the process;
"hashed" is the raw write and the SHA-256 of its bytes, what no writer of shards with digests can do without. All run in
one process, one after another, in turning order; the files go to
`--folder`, and are removed after each. Ratios are medians over pairs.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import pairs
from engine.shards import records
from engine.shards.names import PlanFacts, tar_path
from engine.shards.writer import ShardBuilder
from engine.spec import canonical_json
from engine.storage.store import open_store

Files = dict[str, bytes]
CASES: dict[str, dict[str, Any]] = {
    "62 KB": {"bytes": 62_000, "samples": 1000, "of_raw": 0.5, "over_webdataset": 4.0},
    "1.5 KB": {"bytes": 1_500, "samples": 5000, "of_raw": None, "over_webdataset": 10.0},
}


@dataclass(frozen=True)
class Seconds:
    """What writing one shard took."""

    wall: float
    cpu: float


def samples(size: int, count: int) -> list[tuple[str, Files]]:
    """Keys and files as a run writes them; the image is noise between the marks of a JPEG."""
    noise = random.Random(0)
    return [
        (
            f"bench-{index:012d}",
            {
                "jpg": b"\xff\xd8" + noise.randbytes(size - 4) + b"\xff\xd9",
                "cls": str(index % 10).encode(),
                "json": canonical_json(facts_of(index)).encode(),
                "txt": b"photo of digit 3, best quality",
            },
        )
        for index in range(count)
    ]


def facts_of(index: int) -> dict[str, Any]:
    """Provenance of the length that a run's has."""
    return {
        "index": index,
        "key": f"bench-{index:012d}",
        "label": index % 10,
        "class": "three",
        "prompt": "photo of digit 3, best quality",
        "anchor": "digits/000123",
        "token": None,
        "init": None,
        "seed": 1234567890123456789,
        "attempt": 1,
        "clip_score": None,
        "visual_token": "own",
        "pairing": "own",
        "strength": 1.0,
        "scheduler": "dpmsolver++",
        "guidance_scale": 2.0,
        "num_inference_steps": 20,
        "spec_hash": "5" * 64,
        "checkpoint": "c" * 64,
        "lora": None,
        "engine": "1.0",
    }


def write_engine(folder: Path, given: list[tuple[str, Files]]) -> None:
    """One shard as a run writes it."""
    facts, store = PlanFacts("bench", len(given), len(given), "5" * 64), open_store(folder)
    builder = ShardBuilder()
    for key, files in given:
        builder.add(key, files)
    tar = builder.finish()
    if not store.create(tar_path(facts.shard(0)), tar.pieces):
        raise RuntimeError("the shard was there")
    records.publish(store, records.make(facts, 0, tar, (), "d" * 64, seconds=1.0, batch_size=16, device="cpu"))


def write_raw(folder: Path, data: bytes) -> None:
    """The bytes of a shard in a new file, synced."""
    with (folder / "raw.tar").open("wb", buffering=0) as out:
        view = memoryview(data)
        while view:
            view = view[out.write(view) :]
        os.fsync(out.fileno())


def write_hashed(folder: Path, data: bytes) -> None:
    """The same and its SHA-256: the least that a shard with a digest costs."""
    hashlib.sha256(data).digest()
    write_raw(folder, data)


def write_webdataset(folder: Path, given: list[tuple[str, Files]]) -> None:
    """The same samples with webdataset's writer, synced."""
    from webdataset import TarWriter

    with (folder / "webdataset.tar").open("wb") as out:
        writer = TarWriter(out, encoder=False)
        for key, files in given:
            writer.write({"__key__": key, **files})
        writer.close()
        out.flush()
        os.fsync(out.fileno())


def timed(write: Callable[[Path], None], place: Path) -> Seconds:
    """One shard into an empty folder, which is removed after the clocks are read."""
    folder = Path(tempfile.mkdtemp(prefix="shard-", dir=place))
    wall, cpu = time.perf_counter(), time.process_time()
    write(folder)
    taken = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
    shutil.rmtree(folder)
    return taken


def tar_of(given: list[tuple[str, Files]], place: Path) -> bytes:
    """The engine's shard, after a check that Python's tarfile finds the same samples in both writers' shards."""
    import tarfile

    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        write_engine(folder, given)
        write_webdataset(folder, given)
        paths = (folder / "data" / "bench-000000.tar", folder / "webdataset.tar")
        found = []
        for path in paths:
            with tarfile.open(path) as tar:
                found.append({member.name: tar.extractfile(member).read() for member in tar})  # type: ignore[union-attr]
        if found[0] != found[1] or len(found[0]) != 4 * len(given):
            raise RuntimeError("the two writers do not write the same samples")
        return paths[0].read_bytes()


def measure(name: str, case: dict[str, Any], count: int, place: Path) -> list[pairs.Row]:
    """One size of samples."""
    given = samples(case["bytes"], case["samples"])
    data = tar_of(given, place)
    sides = {
        "engine": partial(timed, partial(write_engine, given=given), place),
        "raw": partial(timed, partial(write_raw, data=data), place),
        "hashed": partial(timed, partial(write_hashed, data=data), place),
        "webdataset": partial(timed, partial(write_webdataset, given=given), place),
    }
    taken = pairs.alternate(sides, count)
    wall = {side: [one.wall for one in values] for side, values in taken.items()}
    cpu = {side: [one.cpu for one in values] for side, values in taken.items()}
    more = {
        "samples": len(given),
        "tar_bytes": len(data),
        "pairs": count,
        "mb_per_s": {side: len(data) / 1e6 * pairs.ratio([1.0] * count, values) for side, values in wall.items()},
        "cpu_us_a_sample": {
            side: 1e6 / len(given) * pairs.ratio(values, [1.0] * count) for side, values in cpu.items()
        },
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }
    raw, stock = pairs.ratio(wall["raw"], wall["engine"]), pairs.ratio(cpu["webdataset"], cpu["engine"])
    limit = pairs.ratio(cpu["hashed"], cpu["engine"])
    return [
        pairs.judged(
            name, "MB/s over raw write + fsync (wall)", raw, pairs.spread(wall["raw"]), case["of_raw"], **more
        ),
        pairs.judged(
            name,
            "samples/s over TarWriter (CPU time)",
            stock,
            pairs.spread(cpu["webdataset"]),
            case["over_webdataset"],
        ),
        pairs.judged(name, "samples/s over raw write + SHA-256 (CPU time)", limit, pairs.spread(cpu["hashed"]), None),
    ]


def main() -> None:
    """Measure both sizes, print the table, write the JSON; exit status 1 where a target was missed."""
    parser = pairs.parser(__doc__, pairs=9)
    parser.add_argument("--folder", type=Path, help="where to write the shards: the disk that is measured")
    arguments = parser.parse_args()
    rows = []
    for name, case in CASES.items():
        chosen = {**case, "samples": case["samples"] // 50} if arguments.quick else case
        with tempfile.TemporaryDirectory(prefix="shard-writing-", dir=arguments.folder) as place:
            rows += measure(name, chosen, 2 if arguments.quick else arguments.pairs, Path(place))
    pairs.finish("shard_writing", rows, arguments)


if __name__ == "__main__":
    main()
