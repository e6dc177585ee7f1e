"""Who holds an output: a process, told apart from every other that had or will have its number."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import OutputInUseError


@dataclass(frozen=True)
class Holder:
    """Who holds an output: machine, process, since when (Unix time), and as what ("mimeo generate").

    `process` tells this process from a later one of the same number; `beat` counts the heartbeats of a remote lease.
    """

    host: str
    pid: int
    since: float
    what: str
    process: str = ""
    nonce: str = ""
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls, what: str) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, time.time(), what, _process(pid), uuid.uuid4().hex)

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """Parse a lock's text; None where it is not whole."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        return found if type(found.pid) is int and _is_time(found.since) else None

    def text(self) -> bytes:
        """The holder as one JSON object."""
        return json.dumps(asdict(self)).encode()

    def refusal(self, where: str) -> OutputInUseError:
        """The error for whoever comes second."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return OutputInUseError(
            where,
            f"is in use by {self.what} (host {self.host}, process {self.pid}, since {since})",
            "wait for it, or stop that process; a dead process holds nothing",
        )

    def is_dead(self) -> bool:
        """Whether the process is known to be gone: it ran on this boot of this machine and does so no more."""
        boot = self.process.rpartition("/")[0]
        return bool(boot) and boot == _boot() and _process(self.pid) != self.process


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e11  # type: ignore[operator]  # Unix time, up to the year 5138


def _boot() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Boot, process-id namespace and start time of a live process; empty where there is none (or no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" or not _boot() else f"{_boot()}/{fields[19]}"
