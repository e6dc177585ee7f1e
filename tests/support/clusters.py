"""Real Ray clusters on this machine: heads and nodes as processes of their own, ended by pid with all that they
started."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
READY_S = 120


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Head:
    """A head with a dashboard on loopback and token authentication; `env` is what its clients need."""

    folder: Path
    address: str
    dashboard: str
    env: dict[str, str] = field(repr=False)


def environment(folder: Path, token: Path) -> dict[str, str]:
    """What every process of a cluster with this token needs: none of this machine's other Rays, this interpreter
    first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "HOME": str(folder),  # Ray writes ~/.ray
    }


def processes(folder: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names the folder: all that a Ray in it has started."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline()) + " ".join(process.environ().values())
        except (psutil.Error, OSError):
            continue
        if str(folder) in words and process.pid != os.getpid():
            found.append(process)
    return found


def end(folder: Path) -> None:
    """End every process of the folder, at once."""
    for process in processes(folder):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes(folder), timeout=10)


@contextmanager
def head(
    cpus: int = 4, *, env: dict[str, str] | None = None, autoscaling: Callable[[str], dict[str, Any]] | None = None
) -> Iterator[Head]:
    """A head for the block, with an autoscaler where `autoscaling` gives its configuration for the head's address.

    Its temporary folder is short, since Ray's socket paths may have 107 characters only.
    """
    folder = Path(tempfile.mkdtemp(prefix="mimeo-head-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    env = environment(folder, token) | (env or {})
    port, dashboard = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    words = [RAY, "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1"]
    words += [f"--dashboard-port={dashboard}", f"--temp-dir={folder / 'ray'}", f"--num-cpus={cpus}", "--num-gpus=0"]
    words += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    words += ["--object-store-memory=200000000"]
    if autoscaling is not None:
        (folder / "autoscaling.json").write_text(json.dumps(autoscaling(address)))
        words += [f"--autoscaling-config={folder / 'autoscaling.json'}"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log, cwd=folder)
    made = Head(folder, address, f"http://127.0.0.1:{dashboard}", env)
    try:
        _await(made, process)
        yield made
    finally:
        process.kill()
        process.wait()
        end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _await(made: Head, process: subprocess.Popen[bytes]) -> None:
    """Wait until the job server answers."""
    deadline = time.monotonic() + READY_S
    while True:
        asked = subprocess.run(
            [RAY, "job", "list", "--address", made.dashboard], env=made.env, capture_output=True, check=False
        )
        if asked.returncode == 0:
            return
        text = (made.folder / "head.log").read_text()
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text + asked.stderr.decode()
        time.sleep(0.5)
