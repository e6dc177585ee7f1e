"""What a worker uses: time of its share of a device and, where NVML counts it, energy; told in the output while it
lives."""

from __future__ import annotations

import math
import os
import platform
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.shards.cost import FOLDER, Usage
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import Store

BEAT_S = 30.0  # between two writes of the usage file: what a worker that is killed did since is not counted
Counter = Callable[[], int]  # millijoules since some moment


@dataclass(frozen=True)
class Spent:
    """Wall time and device time in seconds, energy in joules or None: as moments of a meter, or between two of them."""

    seconds: float = 0.0
    device_seconds: float = 0.0
    joules: float | None = None

    def rounded(self) -> dict[str, float | None]:
        """The fields of a record."""
        joules = None if self.joules is None else round(self.joules, 3)
        return {
            "seconds": round(self.seconds, 3),
            "device_seconds": round(self.device_seconds, 3),
            "joules": joules,
        }


class Meter:
    """Measures one worker from its making on; nothing that it does raises.

    `share`: GPUs that the worker holds, or torch threads on the CPU. Energy is that of the GPUs it runs on times its
    share of them. With a `store`, the worker's `Usage` is written there at once, with every booking and every `BEAT_S`
    seconds.
    """

    def __init__(
        self,
        resources: ResourcesSpec,
        device: str,
        store: Store | None = None,
        counters: Sequence[Counter] | None = None,
    ) -> None:
        self._began = time.monotonic()
        self.device = device.partition(":")[0]
        self.share = resources.gpus_per_actor if self.device == "cuda" else float(resources.threads)
        self._booked_seconds = self._booked_joules = 0.0
        self._store, self._place = store, f"{FOLDER}/{secrets.token_hex(8)}.json"
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._counters: Sequence[Counter] = counters or ()
        self._first: list[int] = []
        self.name = self.device
        with suppress(Exception):
            self.name = cpu_name() if self.device == "cpu" else _gpu_name(device)
            if counters is None and self.device == "cuda":
                self._counters = nvml_counters(device, self.share)
        with suppress(Exception):
            self._first = [read() for read in self._counters]
        if store is not None:
            self._write()
            self._thread = threading.Thread(target=self._beat, daemon=True, name="meter")
            self._thread.start()

    def now(self) -> Spent:
        """All that was spent since the meter was made."""
        seconds = time.monotonic() - self._began
        return Spent(seconds, seconds * self.share, self._joules())

    def since(self, start: Spent) -> Spent:
        """What was spent since an earlier `now`."""
        end = self.now()
        known = end.joules is not None and start.joules is not None
        joules = max(0.0, (end.joules or 0.0) - (start.joules or 0.0)) if known else None
        return Spent(end.seconds - start.seconds, end.device_seconds - start.device_seconds, joules)

    def book(self, spent: Spent) -> None:
        """Note that this is in the record of a published shard."""
        with self._lock:
            self._booked_seconds += spent.device_seconds
            self._booked_joules += spent.joules or 0.0
        self._write()

    def close(self) -> None:
        """End of the worker in a process that goes on."""
        self._stop.set()
        if self._store is not None:
            self._thread.join(timeout=10)
        self._write()

    def _joules(self) -> float | None:
        if not self._first:
            return None
        with suppress(Exception):
            used = sum(read() - first for read, first in zip(self._counters, self._first, strict=True))
            return used / 1000 * self.share / len(self._first)
        return None

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._write()

    def _write(self) -> None:
        if self._store is None:
            return
        with suppress(Exception), self._lock:
            spent = self.now()
            usage = Usage(
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self.device,
                device_name=self.name,
                device_seconds=round(spent.device_seconds, 3),
                booked_seconds=round(self._booked_seconds, 3),
                joules=None if spent.joules is None else round(spent.joules, 3),
                booked_joules=round(self._booked_joules, 3),
                updated=round(time.time(), 3),
            )
            self._store.replace(self._place, usage.to_json())


def cpu_name() -> str:
    """The processor's model as Linux names it, or else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def nvml_counters(device: str, share: float) -> list[Counter]:
    """The energy counters of the GPUs that a worker runs on, found by UUID, as CUDA numbers only those it may see.

    NVML is that of `pynvml` (nvidia-ml-py), or the copy that Ray carries. Raises whatever is wrong: no driver, no
    counter.
    """
    import torch

    nvml = _nvml()
    nvml.nvmlInit()
    first = torch.device(device).index or 0
    counters: list[Counter] = []
    for index in range(first, first + max(1, math.ceil(share))):
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        counters.append(lambda handle=handle: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))  # type: ignore[misc]
    return counters


def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        from ray._private.thirdparty import pynvml
    return pynvml


def _gpu_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(torch.device(device))
