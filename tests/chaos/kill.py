"""Random kill -9 of drivers and actors, resumed to the end and audited (python -m tests.chaos.kill --kills 50)."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.shards.verification import verify
from engine.storage.store import open_store
from tests.chaos.auditor import Auditor
from tests.support.checkpoints import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0
ENDING_S = 5.0  # Ray's agents and half-started workers outlive a killed driver by up to a minute


@dataclass
class Outcome:
    """What a programme did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    outputs: int = 0
    drivers: int = 0
    samples: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    slow_to_end: int = 0

    def text(self) -> str:
        """One line of figures, then a line a fault."""
        kills = ", ".join(f"{number} of {victim}" for victim, number in sorted(self.kills.items()))
        head = (
            f"{self.kills.total()} kills ({kills}) in {self.seconds:.0f} s: {self.outputs} outputs "
            f"of {self.samples} samples in all, "
            f"{self.drivers} driver sessions, {len(self.faults)} faults, {self.slow_to_end} "
            "processes had to be ended by hand"
        )
        return "\n".join([head, *self.faults])


class Driver:
    """One driver process in a session of its own, and what descends from it."""

    def __init__(self, folder: Path, settings: dict[str, int | str], log: Path) -> None:
        self._log = log.open("a")
        command = [sys.executable, "-m", "tests.chaos.driver", str(folder), json.dumps(settings)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log, start_new_session=True)
        self.started = time.monotonic()
        self._family: dict[int, psutil.Process] = {}
        self._folders: set[Path] = set()

    def actors(self) -> list[psutil.Process]:
        """The generating actors that live now; notes all descendants and Ray's folders on the way."""
        found = []
        for process in self._descendants():
            try:
                self._family.setdefault(process.pid, process)
                words = process.cmdline()
            except psutil.Error:
                continue
            self._folders |= {Path(w.partition("=")[2]) for w in words if w.startswith(("--temp-dir=", "--temp_dir="))}
            if "ShardActor" in " ".join(words):
                found.append(process)
        return found

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def clean(self) -> int:
        """Wait for what descends from an ended driver, end what stays, remove Ray's folder; how many had to be
        ended."""
        self.process.wait()
        self._log.close()
        _, left = psutil.wait_procs(list(self._family.values()), timeout=ENDING_S)
        for process in left:
            process.kill()
        for folder in self._folders:
            if folder.name.startswith("mimeo-"):
                shutil.rmtree(folder, ignore_errors=True)
        return len(left)


class Programme:
    """Makes outputs one after another under random kills until there were enough, and audits after every one."""

    def __init__(self, folder: Path, kills: int, *, seed: int = 0, count: int = 480, shard_size: int = 20) -> None:
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self.settings = {
            "count": count,
            "shard_size": shard_size,
            "checkpoint": str(write_checkpoint(folder / "model")),
        }
        self.outcome = Outcome()
        self.log = folder / "drivers.log"

    def run(self) -> Outcome:
        """Run the programme; the first output is made in peace, the others must be equal to it."""
        began = time.monotonic()
        reference = self._output("reference", harass=False)
        while not self._enough():
            tars = self._output(f"out{self.outcome.outputs}", harass=True)
            if tars != reference:
                self.outcome.faults.append("the shards differ from those of a run without kills")
            print(self.outcome.text(), flush=True)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _enough(self) -> bool:
        """As many kills as asked for, of drivers and of actors both."""
        return self.outcome.kills.total() >= self.kills and len(self.outcome.kills) == 2

    def _output(self, name: str, *, harass: bool) -> dict[str, str]:
        folder = self.folder / name
        auditor = Auditor(folder)
        if harass:  # catalogue and conditions are made already: kills fall on generation
            for part in ("spec.yaml", "catalog", "conditions"):
                source = self.folder / "reference" / part
                (shutil.copytree if source.is_dir() else _copy)(source, folder / part)
        while True:
            driver = Driver(folder, self.settings, self.log)
            self.outcome.drivers += 1
            try:
                killed = harass and self._harass(driver, auditor)
                self._wait(driver)
            finally:
                driver.process.kill()
                self.outcome.slow_to_end += driver.clean()
            self.outcome.faults += auditor.look()
            if not killed:
                break
        if driver.process.returncode != 0:
            raise RuntimeError(f"a driver that nobody killed ended with {driver.process.returncode}: see {self.log}")
        self.outcome.faults += auditor.conclude() + verify(open_store(str(folder))).faults
        self.outcome.outputs += 1
        self.outcome.samples += int(self.settings["count"])
        return auditor.tars()

    def _wait(self, driver: Driver) -> None:
        while not driver.ended():
            driver.actors()
            if time.monotonic() - driver.started > PATIENCE_S:
                raise RuntimeError(f"a driver did not end in {PATIENCE_S:.0f} s: see {self.log}")
            time.sleep(0.2)

    def _harass(self, driver: Driver, auditor: Auditor) -> bool:
        """Kill some actors and, mostly, the driver; True where the driver was killed."""
        if self.random.random() < 0.15:  # while it starts
            return self._sleep(driver, self.random.uniform(0, 8)) and self._kill_driver(driver)
        for _ in range(self.random.randint(2, 4)):
            if self._enough() or not self._await_work(driver, auditor.folder):
                return False
            if not self._sleep(driver, self.random.uniform(0, 1.5)):
                return False
            self._kill_actor(driver)
            self.outcome.faults += auditor.look()
        if self._enough() or self.random.random() < 0.25:
            return False
        return self._sleep(driver, self.random.uniform(0, 4)) and self._kill_driver(driver)

    def _await_work(self, driver: Driver, folder: Path) -> bool:
        """Wait until a shard is being drawn; False where the driver ended."""
        while not driver.ended() and time.monotonic() - driver.started < PATIENCE_S:
            drawing = any("loading" not in path.name for path in folder.glob("attempts/*/*"))
            if driver.actors() and drawing:
                return True
            time.sleep(0.02)
        return False

    def _sleep(self, driver: Driver, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not driver.ended():
            driver.actors()
            time.sleep(0.02)
        return not driver.ended()

    def _kill_actor(self, driver: Driver) -> None:
        actors = driver.actors()
        if actors:
            victim = self.random.choice(actors)
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                return
            self.outcome.kills["actors"] += 1

    def _kill_driver(self, driver: Driver) -> bool:
        driver.actors()
        driver.process.send_signal(signal.SIGKILL)
        if driver.process.wait() != -signal.SIGKILL:
            return False  # it ended by itself just before
        self.outcome.kills["drivers"] += 1
        return True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def main() -> None:
    """Run a programme in a temporary folder; exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        outcome = Programme(Path(folder), arguments.kills, seed=arguments.seed).run()
    print(outcome.text())
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
