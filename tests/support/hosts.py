"""Hosts of a network of their own on this machine: a namespace each, joined by a switch; they can be cut off and
crash."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ceph
from tests.support.clusters import RAY, READY_S, ROOT, end, environment, processes

PORT = 26379
STORE_PORT = 5000


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@dataclass
class Network:
    """A switch with hosts 10.77.0.1, .2, ...; the switch itself is .254 and may serve a store."""

    folder: Path
    names: list[str]
    env: dict[str, str] = field(repr=False)
    started: list[subprocess.Popen[Any]] = field(default_factory=list, repr=False)

    @property
    def switch(self) -> str:
        return f"{self.folder.name}-sw"

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def popen(self, where: str, *words: str, log: str, env: dict[str, str] | None = None) -> subprocess.Popen[Any]:
        """A process inside a namespace, its output in a file of the network's folder."""
        with (self.folder / log).open("w") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", where, *words],
                env={**self.env, **(env or {}), "MIMEO_NETWORK": str(self.folder)},
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        self.started.append(process)
        return process

    def start(self, host: int, cpus: int, *prefix: str) -> None:
        """Start Ray on a host: the first is the head. `prefix`: a command to run it by."""
        folder = self.folder / self.names[host]
        words = [*prefix, str(RAY), "start", "--block", f"--node-ip-address={self.address(host)}", f"--num-cpus={cpus}"]
        words += ["--num-gpus=0", "--object-store-memory=150000000"]
        if host == 0:
            words += ["--head", f"--port={PORT}", f"--temp-dir={folder}", "--include-dashboard=false"]
        else:
            words += [f"--address={self.address(0)}:{PORT}"]
        log, env = f"{self.names[host]}.log", {"MIMEO_HOST": str(folder)}
        self.popen(self.names[host], *words, log=log, env=env)

    def cut(self, host: int) -> None:
        """Pull the host's cable."""
        run("ip", "-n", self.switch, "link", "set", f"v{host}", "down")

    def crash(self, host: int) -> None:
        """End all of the host's processes at once."""
        end(self.folder / self.names[host])

    def freeze(self, host: int) -> list[psutil.Process]:
        """Stop all of the host's processes where they are; `resume()` of what is returned lets them go on."""
        frozen = processes(self.folder / self.names[host])
        for process in frozen:
            process.suspend()
        return frozen

    def mimeo(self, *arguments: str, log: str = "driver.log") -> subprocess.Popen[Any]:
        """A driver on the head's host that joins the cluster."""
        env = {"RAY_ADDRESS": f"{self.address(0)}:{PORT}", "PYTHONPATH": str(ROOT)}
        return self.popen(self.names[0], sys.executable, "-m", "pipelines.cli", *arguments, log=log, env=env)

    def said(self, log: str = "driver.log") -> str:
        return (self.folder / log).read_text()

    def store(self) -> None:
        """Serve S3 on the switch (moto, or Ceph where the tier has it), with a bucket `runs`."""
        self.env |= {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_ENDPOINT_URL": f"http://10.77.0.254:{STORE_PORT}",
            "AWS_REGION": "us-east-1",
        }
        words = ["-m", "moto.server", "-H", "0.0.0.0", "-p", str(STORE_PORT)]
        if ceph.SCRIPT:
            self.env |= ceph.KEYS
            ports = [str(STORE_PORT + 1), str(STORE_PORT + 2)]
            made = self.popen(self.switch, "bash", ceph.SCRIPT, str(self.folder / "ceph"), *ports, log="ceph.log")
            assert made.wait() == 0, self.said("ceph.log")
            words = ["-c", ceph.FORWARD, str(STORE_PORT), ports[0]]
        self.popen(self.switch, sys.executable, *words, log="s3.log")
        code = "import s3fs, sys; s3fs.S3FileSystem().mkdir('runs')"
        deadline = time.monotonic() + READY_S
        while self.popen(self.switch, sys.executable, "-c", code, log="bucket.log").wait() != 0:
            assert time.monotonic() < deadline, self.said("s3.log") + self.said("bucket.log")
            time.sleep(0.5)

    def ready(self, nodes: int) -> None:
        """Wait until so many nodes have joined."""
        code = (
            f"import ray; ray.init(address='{self.address(0)}:{PORT}', logging_level='ERROR', "
            "log_to_driver=False); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
        )
        deadline = time.monotonic() + READY_S
        while True:
            self.popen(self.names[0], sys.executable, "-c", code, log="ready.log").wait()
            if f"nodes {nodes}" in self.said("ready.log"):
                return
            assert time.monotonic() < deadline, self.said("ready.log") + self.said(f"{self.names[0]}.log")
            time.sleep(0.5)


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """So many hosts, without Ray yet; skips where namespaces may not be made."""
    folder = Path(tempfile.mkdtemp(prefix="mm", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    made = Network(folder, [f"{folder.name}-h{k}" for k in range(hosts)], environment(folder, token))
    try:
        _connect(made)
        yield made
    finally:
        for process in made.started:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        end(folder)
        for name in (made.switch, *made.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _connect(made: Network) -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("hosts with addresses of their own need root and iproute2")
    try:
        run("ip", "netns", "add", made.switch)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    _each(
        made.switch,
        ["link add br0 type bridge", "link set br0 up", "link set lo up", "addr add 10.77.0.254/24 dev br0"],
    )
    for k, name in enumerate(made.names):
        run("ip", "netns", "add", name)
        _each(made.switch, [f"link add v{k} type veth peer name eth0 netns {name}", f"link set v{k} master br0 up"])
        ups = [
            f"addr add {made.address(k)}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            "route add default dev eth0",
        ]
        _each(name, ups)


def _each(name: str, commands: Sequence[str]) -> None:
    for command in commands:
        run("ip", "-n", name, *command.split())
