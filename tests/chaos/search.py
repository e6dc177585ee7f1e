"""A ratio search that is killed with -9 in the middle and resumed, beside an undisturbed one: `python -m
tests.chaos.search`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.kill import PATIENCE_S, ROOT, Driver

RECIPE = """
name: killed-search
source: {kind: digits}
images: {size: 8}
split: {train: 24, validation: 40, test: 0}
pretrain:
  text_length: 8
  clip: {hidden: 16, heads: 2, layers: 1, steps: 8, batch: 12}
  vae: {blocks: [8, 8], steps: 8, batch: 8}
  unet: {blocks: [16, 16], head_dim: 8, steps: 8, batch: 8}
conditions: {prompt: "a {class}"}
generate: {shard_size: 24, num_inference_steps: 2, scheduler: ddim, gate: {min_std: 0}}
judge: {steps: 20, width: 4}
search: {ratios: [0, 1, 2], judge_seeds: 2}
resources: {device: cpu}
"""
SEEDS = ("0-0", "0-1")
TRIALS = ("0x", "1x", "2x")


class Search(Driver):
    """`mimeo search` on the recipe as a process in a session of its own; `said` is all that it has printed."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        recipe = folder.parent / "recipe.yaml"
        recipe.write_text(RECIPE)
        self._log = log.open("w")
        command = [sys.executable, "-m", "pipelines.cli", "search", str(recipe), "-o", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self.started = time.monotonic()
        self._family, self._folders = {}, set()

    def wait(self) -> str:
        """Let it end by itself; returns what it said."""
        while not self.ended():
            self.actors()  # notes its descendants
            if time.monotonic() - self.started > PATIENCE_S:
                raise RuntimeError(f"it did not end in {PATIENCE_S:.0f} s: {self.log.read_text()}")
            time.sleep(0.2)
        self.clean()
        if self.process.returncode:
            raise RuntimeError(f"it ended with {self.process.returncode}: {self.log.read_text()}")
        return self.log.read_text()

    def kill_in_the_middle(self) -> list[str]:
        """Kill -9 the driver's process group once a trial is finished and before all are; returns the finished ones."""
        while not finished(self.folder):
            if self.ended() or time.monotonic() - self.started > PATIENCE_S:
                raise RuntimeError(f"no trial was finished: {self.log.read_text()}")
            self.actors()
            time.sleep(0.02)
        self.actors()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.clean()
        return finished(self.folder)


def finished(folder: Path) -> list[str]:
    """Trials whose classifiers are all published."""
    trials = folder / "results/search/trials"
    return [key for key in TRIALS if all((trials / key / f"{seed}.json").exists() for seed in SEEDS)]


def published(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time of change and content of everything that trials have published: accuracies, models, shards."""
    files = [*folder.glob("results/search/**/*.json"), *folder.glob("trials/*/*/data/*.tar")]
    files += folder.glob("trials/*/*/model/mimeo.json")
    return {str(f.relative_to(folder)): (f.stat().st_ino, f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def faults_of(folder: Path, *, thorough: bool = False) -> list[str]:
    """Kill a search and resume it; what is wrong, in words. `thorough`: beside an undisturbed one, and asked for once
    more."""
    out = folder / "war/out"
    out.parent.mkdir()
    before = Search(out, folder / "killed.log").kill_in_the_middle()
    held = published(out)
    said = Search(out, folder / "resumed.log").wait()
    after = published(out)
    faults = [f"killed too late: {len(before)} trials were finished"] if len(before) == len(TRIALS) else []
    faults += [f"{name} was published again" for name, facts in held.items() if after.get(name) != facts]
    faults += [f"{key} ran again" for key in before if f"search {key} seed" in said]
    faults += [f"{key} did not run" for key in TRIALS if key not in before and f"search {key} seed" not in said]
    if f"search: validation: 0/{len(TRIALS) - len(before)} trials" not in said:
        faults.append("another number of trials than the missing ones ran")
    return faults + (_beside_an_undisturbed_one(folder, out) if thorough else [])


def _beside_an_undisturbed_one(folder: Path, out: Path) -> list[str]:
    (folder / "peace").mkdir()
    Search(folder / "peace/out", folder / "peace.log").wait()
    faults, after = [], published(out)
    results = [json.loads((one / "results/search.json").read_text()) for one in (folder / "peace/out", out)]
    if results[0] != results[1]:
        faults.append("the result is not that of an undisturbed run")
    again = Search(out, folder / "again.log").wait()
    if "nothing to do" not in again or published(out) != after:
        faults.append("a finished search did something")
    return faults


def main() -> int:
    """Print what is wrong, a line each; 1 where anything is."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        faults = faults_of(Path(name), thorough=True)
    print("\n".join(faults) or "killed in the middle and resumed: no finished trial ran again, the result is the same")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
