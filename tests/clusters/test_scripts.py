"""The scripts for machines of one's own, run with stand-ins for Slurm, ssh and Ray that write down how they are
called."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.clusterfiles import CLUSTERS

SLURM = CLUSTERS / "local/slurm.sh"
WORKSTATIONS = CLUSTERS / "local/workstations.sh"
NOTE = 'printf "%s" "$(basename "$0")" >>"$CALLS"; printf " %q" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
RAY = NOTE + (
    'echo "token $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH")" >>"$CALLS"; echo "will now '
    'block forever"; exec -a "ray $*" sleep 60\n'
)
STUBS = {
    "ray": RAY,
    "scontrol": NOTE + "printf 'n1\\nn2\\nn3\\n'\n",
    "srun": NOTE + 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"\n',
    "hostname": "echo 10.0.0.7\n",
    # -m pipelines.VERB is the run; a program on standard input waits for the nodes; -c is real Python
    "python": (
        f'case "$1" in -c) exec {sys.executable} "$@" ;; -) cat >/dev/null; for _ in $(seq '
        '200); do grep -q "token " "$CALLS" && break; sleep 0.1; done; exit "${WAIT_CODE:-0}" ;; esac\n'
    )
    + NOTE
    + 'echo "run $RAY_ADDRESS" >>"$CALLS"; [ -z "${HANG:-}" ] || sleep 60; exit "${RUN_CODE:-0}"\n',
    "ssh": NOTE + 'cd "$HOME"; shift; exec bash -c "$*"\n',
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home folder, a project with a .venv, and the stand-ins in it."""
    folder = tmp_path / "mimeo" / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in STUBS.items():
        (folder / name).write_text("#!/bin/bash\n" + text)
        (folder / name).chmod(0o755)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    path = f"{place}/mimeo/.venv/bin:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(place), "CALLS": str(place / "calls"), **more}


def slurm(place: Path, **more: str) -> dict[str, str]:
    return environment(
        place,
        SLURM_SUBMIT_DIR=str(place / "mimeo"),
        SLURM_JOB_ID=str(900_000_000 + os.getpid()),
        SLURM_JOB_NODELIST="n[1-3]",
        SLURM_CPUS_PER_TASK="2",
        **more,
    )


def rays(place: Path) -> list[str]:
    """Command lines of the Rays that belong to this test's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CALLS={place}/calls".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line.startswith("ray ")]


@pytest.mark.parametrize("code", [0, 3])
def test_slurm(place: Path, code: int) -> None:
    run = subprocess.run(
        ["bash", str(SLURM), "generate", "flowers.yaml", "--output", "/shared/a b"],
        env=slurm(place, RUN_CODE=str(code), HEAD_IP="127.0.0.1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code, run.stderr
    calls = (place / "calls").read_text().splitlines()
    port = 20000 + (900_000_000 + os.getpid()) % 2000 * 5
    head = next(line for line in calls if line.startswith("ray start --head"))
    assert f"--port={port}" in head
    assert "--block" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert any("--nodes=2 --ntasks=2 --exclude=n1" in line for line in calls)
    assert "python -m pipelines.generate flowers.yaml --output /shared/a\\ b" in calls
    assert f"run 127.0.0.1:{port}" in calls
    (token,) = {line.split()[-1] for line in calls if line.startswith("token ")}
    assert len(token) == 64
    assert token not in run.stdout + run.stderr
    assert not list((place / ".mimeo").iterdir())
    assert rays(place) == []


def test_slurm_ends_when_it_is_told_to(place: Path) -> None:
    process = subprocess.Popen(
        ["bash", str(SLURM), "generate", "flowers.yaml", "--output", "/shared/a"],
        env=slurm(place, HANG="1", HEAD_IP="127.0.0.1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    calls = place / "calls"
    deadline = time.monotonic() + 30
    while "run 127.0.0.1" not in (calls.read_text() if calls.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 143
    deadline = time.monotonic() + 10
    while (left := rays(place)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert not list((place / ".mimeo").iterdir())


def test_slurm_when_nodes_do_not_come(place: Path) -> None:
    run = subprocess.run(
        ["bash", str(SLURM), "generate", "flowers.yaml"],
        env=slurm(place, WAIT_CODE="1", HEAD_IP="127.0.0.1"),
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert "pipelines.generate" not in (place / "calls").read_text()
    assert rays(place) == []


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid")
def test_workstations(place: Path) -> None:
    hosts = place / "hosts"
    hosts.write_text("# ours\nhead.example  # the big one\n\n")
    name = f"t{os.getpid()}"
    env = environment(place, MIMEO_CLUSTER=name, HEAD_IP="10.0.0.7")
    other = subprocess.Popen(["bash", "-c", "exec -a 'ray start --head' sleep 60"])  # somebody else's Ray
    try:
        command = ["bash", str(WORKSTATIONS), "start", str(hosts)]
        first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert first.returncode == 0, first.stderr
        again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert "is up already" in again.stdout
        calls = (place / "calls").read_text()
        assert calls.count("ray start --block") == 1
        assert "--head --node-ip-address=10.0.0.7 --port=26379 --dashboard-host=127.0.0.1" in calls
        token = place / ".mimeo" / f"{name}.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert token.read_text() not in first.stdout + first.stderr
        assert f"token token {token.read_text()}" in calls
        pid = int((place / ".mimeo" / f"{name}-10.0.0.7.pid").read_text())
        os.kill(pid, 0)
        inside = Path(f"/tmp/mimeo-{name}-{os.geteuid()}")
        assert stat.S_IMODE(inside.stat().st_mode) == 0o700
        assert f"--temp-dir={inside}/ray" in calls
    finally:
        subprocess.run(["bash", str(WORKSTATIONS), "stop", str(hosts)], env=env, timeout=60, check=True)
        assert other.poll() is None
        other.terminate()
        other.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert {path.name for path in (place / ".mimeo").iterdir()} <= {f"{name}-10.0.0.7.log"}


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_another_user_made_is_not_used(place: Path) -> None:
    (place / "hosts").write_text("head.example\n")
    name = f"f{os.getpid()}"
    inside = Path(f"/tmp/mimeo-{name}-0")
    inside.mkdir()
    os.chown(inside, 65534, 65534)
    try:
        run = subprocess.run(
            ["bash", str(WORKSTATIONS), "start", str(place / "hosts")],
            env=environment(place, MIMEO_CLUSTER=name, HEAD_IP="10.0.0.7"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        inside.rmdir()
    assert run.returncode != 0
    assert f"{inside} is not ours" in run.stderr
    assert not (place / "calls").exists() or "ray start" not in (place / "calls").read_text()


@pytest.mark.parametrize("arguments", [[], ["start"], ["restart", "hosts"]])
def test_wrong_use(arguments: list[str]) -> None:
    run = subprocess.run(
        ["bash", str(WORKSTATIONS), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert run.returncode == 2
    assert "usage" in run.stderr


def test_no_host(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# nobody\n")
    run = subprocess.run(
        ["bash", str(WORKSTATIONS), "start", str(tmp_path / "hosts")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.returncode == 2
    assert "names no host" in run.stderr
