"""An independent witness of an output: reads it as a stranger would, with tarfile, hashlib and json alone."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

FACTS = ("anchor", "class", "index", "init", "label", "pairing", "prompt", "seed", "strength", "token", "visual_token")
DAMAGE = (ValueError, KeyError, tarfile.TarError)
Seen = dict[str, tuple[str, int, int]]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def samples(tar: Path) -> list[dict[str, Any]]:
    """The JSON of each sample in a tar that ends as POSIX asks; ValueError where a sample is incomplete or out of
    order."""
    data = tar.read_bytes()
    if len(data) % 10240 or data[-1024:] != bytes(1024):
        raise ValueError(f"{tar.name} does not end as a tar does")
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = archive.extractfile(member).read()
    if list(found) != sorted(found) or any(set(files) != {"cls", "json", "png", "txt"} for files in found.values()):
        raise ValueError(f"{tar.name} has incomplete or unsorted samples")
    metas = []
    for key, files in found.items():
        meta = json.loads(files["json"])
        if meta["key"] != key or str(meta["label"]).encode() != files["cls"] or not files["png"].startswith(b"\x89PNG"):
            raise ValueError(f"{tar.name}: {key} does not agree with itself")
        metas.append(meta)
    return metas


class Auditor:
    """Remembers every published file of an output and says what is wrong with it, now and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: Seen = {}

    def look(self) -> list[str]:
        """Faults of what is published so far: shards that changed, are torn, or disagree with their record."""
        faults = []
        tars = sorted((self.folder / "data").glob("*.tar"))
        for name in set(self.seen) - {tar.name for tar in tars}:
            faults.append(f"{name} has disappeared")
        for tar in tars:
            status = tar.stat()
            now = (sha256(tar), status.st_mtime_ns, status.st_ino)
            if self.seen.setdefault(tar.name, now) != now:
                faults.append(f"{tar.name} was changed after it was published")
            try:
                samples(tar)
            except DAMAGE as error:
                faults.append(f"{tar.name} is torn: {error}")
        for path in sorted((self.folder / "data").glob("*-*.json")):
            tar = path.with_suffix(".tar")
            record = json.loads(path.read_bytes())
            if not tar.exists() or (record["bytes"], record["sha256"]) != (tar.stat().st_size, sha256(tar)):
                faults.append(f"{path.name} is not the record of its tar")
        return faults

    def conclude(self) -> list[str]:
        """Faults of a finished output: every planned sample once, every shard as sealed, nothing left behind."""
        faults = self.look()
        plan = json.loads((self.folder / "plan.json").read_bytes())
        indices: list[int] = []
        shards = -(-plan["count"] // plan["shard_size"])
        expected = {f"{plan['name']}-{k:06d}" for k in range(shards)}
        if {Path(name).stem for name in self.seen} != expected:
            faults.append("the shards are not those of the plan")
        for name in sorted(expected & {Path(name).stem for name in self.seen}):
            try:
                metas = samples(self.folder / f"data/{name}.tar")
            except DAMAGE:
                continue  # told by `look`
            record = json.loads((self.folder / f"data/{name}.json").read_bytes())
            indices += [meta["index"] for meta in metas]
            lines = [
                json.dumps({f: m[f] for f in FACTS}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
                for m in metas
            ]
            planned = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
            if record["plan_digest"] != planned or record["count"] != len(metas):
                faults.append(f"{name} does not hold what was planned")
        if sorted(indices) != list(range(plan["count"])):
            lost = len(set(range(plan["count"])) - set(indices))
            faults.append(f"{lost} samples are lost and {len(indices) - len(set(indices))} are there twice")
        seal = json.loads((self.folder / "manifest.json").read_bytes())
        if (seal["shards"], seal["samples"], seal["quarantined"]) != (shards, plan["count"], 0):
            faults.append(f"the seal counts {seal['samples']} samples in {seal['shards']} shards")
        faults += [
            f"{name} is not as sealed" for name, f in seal["files"].items() if sha256(self.folder / name) != f["sha256"]
        ]
        strays = [
            p
            for p in self.folder.rglob("*")
            if p.name.startswith(".tmp-") or (p.is_file() and p.parent.parent.name == "attempts")
        ]
        return faults + [f"{path.relative_to(self.folder)} was left behind" for path in strays]

    def tars(self) -> dict[str, str]:
        """SHA-256 of every published tar."""
        return {name: facts[0] for name, facts in self.seen.items()}
