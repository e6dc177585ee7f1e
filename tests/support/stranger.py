"""Another user of this machine: what it can read, write and connect to; and gRPC without a library, with or without a
token."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - now, since another user may not read this interpreter's files
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]


def try_as_stranger(**request: Any) -> dict[str, Any]:
    """What `probe` finds as uid 65534; skips where the tests may not change their user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.stranger"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
        cwd=ROOT,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probe(
    *, read: list[str], write: list[str], sockets: list[str], ports: list[int], token: str = ""
) -> dict[str, Any]:
    """Of each list what could be read, written into, connected to, and (port, method) pairs that answered."""
    return {
        "uid": os.geteuid(),
        "read": [path for path in read if _works(lambda path=path: Path(path).read_bytes())],
        "write": [path for path in write if _works(lambda path=path: (Path(path) / "stranger").write_text("x"))],
        "sockets": [path for path in sockets if _works(lambda path=path: _unix(path))],
        "ports": [(port, name) for port in ports for name in METHODS if grpc_answers(port, name, token)],
        "http": [port for port in ports if http_status(port, token) == 200],
    }


METHODS = (
    "NodeManagerService/GetSystemConfig",
    "ObjectManagerService/Pull",
    "ObjectManagerService/Push",
    "NodeInfoGcsService/GetClusterId",
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "CoreWorkerService/GetCoreWorkerStats",
    "CoreWorkerService/PushTask",
)


def grpc_answers(port: int, method: str, token: str = "") -> bool:
    """Whether an empty call of a method of Ray's gives a message: HTTP/2 frames by hand (RFC 9113), headers as literals
    (RFC 7541)."""
    headers = {":method": "POST", ":scheme": "http", ":path": f"/ray.rpc.{method}", ":authority": "127.0.0.1"}
    headers |= {"te": "trailers", "content-type": "application/grpc"}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    frames = _frame(4, 0, 0, b"") + _frame(1, 4, 1, block) + _frame(0, 1, 1, bytes(5))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
            stream = connection.makefile("rb")
            while len(head := stream.read(9)) == 9:
                body = stream.read(int.from_bytes(head[:3], "big"))
                kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind == 0 and number == 1 and len(body) >= 5:
                    return True
                if number == 1 and flags & 1:
                    return False
    except OSError:
        pass
    return False


def http_status(port: int, token: str = "") -> int | None:
    """The status of GET / over HTTP/1.1, None where the port speaks something else."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/", headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _text(value: str) -> bytes:
    data = value.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def _works(action: Any) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    print(json.dumps(probe(**json.load(sys.stdin))))
