"""A small generation run for clusters: the digits with a random-weight checkpoint, many small shards, and what it
should give."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkpoints import write_checkpoint
from tests.support.clusters import ROOT

SHARDS = 60
SHARD_SIZE = 8


@dataclass(frozen=True)
class SmallRun:
    """The recipe's settings as `--set` words, and the manifest's SHA-256 after an undisturbed run on a private Ray."""

    settings: tuple[str, ...]
    manifest: str

    def words(self, **resources: object) -> list[str]:
        more = [f"resources.{key}={value}" for key, value in resources.items()]
        return [word for one in (*self.settings, *more) for word in ("--set", one)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def small_run(folder: Path, *, shards: int = SHARDS, steps: int = 40) -> SmallRun:
    """Write the checkpoint and make the reference on a private Ray."""
    model = write_checkpoint(folder / "model")
    settings = (
        f"model.checkpoint={model}",
        "model.visual_token=true",
        "split.train=40",
        "split.validation=0",
        "split.test=50",
        "conditions.caption.kind=class",
        "conditions.prompt=photo of digit {class}",
        f"generate.count={shards * SHARD_SIZE}",
        f"generate.shard_size={SHARD_SIZE}",
        f"generate.num_inference_steps={steps}",
        "generate.gate.min_std=0",
        "resources.device=cpu",
        "resources.batch_size=8",
    )
    made = SmallRun(settings, "")
    words = [sys.executable, "-m", "pipelines.cli", "generate", "quickstart", "-o", str(folder / "reference")]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words, *made.words()], env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return SmallRun(settings, digest((folder / "reference/manifest.parquet").read_bytes()))
