"""A private Ray is its user's alone: seen by another user of the same machine, and by its own sockets and files."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from engine.cluster import authentication
from engine.errors import ConfigError
from tests.support import stranger


@dataclass(frozen=True)
class Private:
    """The session's private Ray: its outer folder, its token, and what its processes listen on and were started
    with."""

    folder: Path
    token: str
    listening: list[tuple[str, int]]
    commands: list[str]


@pytest.fixture
def private(ray_cluster: None) -> Private:
    import ray

    ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote())  # a worker is up, with a port of its own
    inner = Path(ray._private.worker.global_worker.node.get_temp_dir_path())
    found = [(process, " ".join(process.cmdline())) for process in psutil.Process().children(recursive=True)]
    found = [(process, command) for process, command in found if str(inner) in command or command.startswith("ray::")]
    sockets = [
        c.laddr for process, _ in found for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    return Private(inner.parent, token, [(at.ip, at.port) for at in sockets], [command for _, command in found])


def test_all_that_a_private_ray_listens_on_is_loopback(private: Private) -> None:
    assert len(private.listening) >= 5  # of the head, the node, its store, its agent, and a worker
    for address, port in private.listening:
        ip = ipaddress.ip_address(address)
        plain = getattr(ip, "ipv4_mapped", None) or ip
        assert plain.is_loopback, (address, port)


def test_its_folder_and_token_are_closed_and_stay_so(private: Private) -> None:
    assert stat.S_IMODE(private.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((private.folder / "token").stat().st_mode) == 0o600
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]) == private.folder / "token"
    assert len(private.token) == 64
    assert not any(private.token in command for command in private.commands)  # everybody reads command lines


def test_another_user_reads_writes_and_calls_nothing(private: Private) -> None:
    folders = [str(path) for path in (private.folder, *private.folder.rglob("*")) if path.is_dir()]
    files = [str(path) for path in private.folder.rglob("*") if path.is_file()]
    sockets = [str(path) for path in private.folder.rglob("*") if path.is_socket()]
    ports = [port for _, port in private.listening]
    assert len(folders) > 3
    assert len(sockets) == 2
    request = {"read": files, "write": folders, "sockets": sockets, "ports": ports}
    found = stranger.try_as_stranger(**request)
    assert found == {"uid": stranger.NOBODY, "read": [], "write": [], "sockets": [], "ports": [], "http": []}
    known = stranger.try_as_stranger(**request, token=private.token)  # what the same calls find with the token
    assert {name for _, name in known["ports"]} >= {"NodeInfoGcsService/GetClusterId"}


@pytest.mark.parametrize("mode", ["tokn", "", "none", " token", "k8s"])
def test_a_mode_that_ray_does_not_know_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=r"RAY_AUTH_MODE: .* is no mode of Ray"):
        authentication.check_mode()
    for known in ("token", "Token", "disabled"):
        monkeypatch.setenv("RAY_AUTH_MODE", known)
        authentication.check_mode()


def test_the_environment_is_that_of_before(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """What a user has set for a cluster neither weakens a private Ray nor is lost by it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-a-cluster")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    names = [
        authentication.CLUSTERS,
        *authentication.INTERFACES,
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ]
    before = {name: os.environ.get(name) for name in names}
    with authentication.private() as folder:
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent == folder.parent
    assert {name: os.environ.get(name) for name in names} == before
    assert not folder.parent.exists()
    monkeypatch.undo()
    authentication._read_again()  # for the Ray that is up
