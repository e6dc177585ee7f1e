"""`mimeo doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import typer
from packaging.requirements import Requirement
from rich.table import Table

from engine import __version__
from engine.cluster.session import cores
from engine.cluster.terminal import Terminal

OPTIONAL = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure", "datasets": "hub"}


def requirements() -> list[Requirement]:
    """What the distribution needs, without its extras."""
    found = [Requirement(text) for text in importlib.metadata.requires("mimeo") or ()]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def check_packages() -> list[tuple[str, str, str]]:
    """(package, state, finding) for each required package; state is "ok", "missing" or "wrong"."""
    rows = []
    for requirement in requirements():
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            rows.append((requirement.name, "missing", f"pip install '{requirement}'"))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        rows.append(
            (
                requirement.name,
                "ok" if fits else "wrong",
                version if fits else f"{version}; needs {requirement.specifier}: pip install '{requirement}'",
            )
        )
    for name, extra in OPTIONAL.items():
        try:
            rows.append((name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "optional", f"not installed; pip install 'mimeo[{extra}]'"))
    return rows


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.1f} GiB"


def check_machine() -> list[tuple[str, str, str]]:
    """(part, state, finding) for Python, cores, memory, disk, shared memory, GPUs and the cluster address."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    shm = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").is_dir() else 0.0
    python = sys.version_info[:2]
    rows = [
        ("mimeo", "ok", __version__),
        (
            "Python",
            "ok" if (3, 11) <= python < (3, 14) else "wrong",
            platform.python_version() + ("" if (3, 11) <= python < (3, 14) else "; needs 3.11 to 3.13"),
        ),
        ("cores", "ok", str(cores())),
        ("memory", "ok", _memory()),
        ("free disk here", "ok" if free > 5 else "low", f"{free:.0f} GiB"),
        (
            "/dev/shm",
            "ok" if shm >= 0.5 else "low",
            f"{shm:.1f} GiB" + ("" if shm >= 0.5 else "; Ray wants 0.5 GiB or more, such as docker run --shm-size=2g"),
        ),
        (
            "Ray cluster",
            "ok",
            os.environ.get("RAY_ADDRESS") or "none named by RAY_ADDRESS: a private local Ray is started for each run",
        ),
    ]
    return [*rows, *_gpus()]


def _gpus() -> list[tuple[str, str, str]]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return [("GPU", "none", "runs on the CPU: fine for the quickstart and for tests, slow for Stable Diffusion")]
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append(
            (
                f"GPU {index}",
                "ok",
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, bfloat16 "
                f"{'yes' if torch.cuda.is_bf16_supported() else 'no'}",
            )
        )
    return rows


def main() -> None:
    """Say what this machine has, what is missing, and how to get it; exit code 2 when something needed is missing."""
    rows = check_machine() + check_packages()
    table = Table(box=None, pad_edge=False)
    for title in ("part", "state", "finding"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Terminal().print(table)
    if any(state in ("missing", "wrong") for _, state, _ in rows):
        raise typer.Exit(2)


if __name__ == "__main__":
    from pipelines.cli import execute

    sys.exit(execute(["doctor", *sys.argv[1:]]))
