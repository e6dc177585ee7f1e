"""An S3 server (moto in this process, or Ceph), and a proxy before it that loses replies, answers 503 or drops
headers."""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support import ceph

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
CREDENTIALS |= ceph.KEYS if ceph.SCRIPT else {}


@contextmanager
def environment(endpoint: str) -> Iterator[None]:
    """Point every S3 client that is made in the block (and in its child processes) at `endpoint`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        yield


@contextmanager
def serve() -> Iterator[str]:
    """Run an S3 store for the block; yields its endpoint. Skips where moto or s3fs is not installed."""
    if ceph.SCRIPT:
        with ceph.radosgw() as endpoint:
            yield endpoint
        return
    server_module = pytest.importorskip("moto.server", reason="moto[s3,server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def make_bucket(endpoint: str) -> str:
    """Create a bucket of a new name; returns the name."""
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    keys = {key.lower(): value for key, value in CREDENTIALS.items() if key != "AWS_DEFAULT_REGION"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=name)
    return name


@dataclass
class Faults:
    """What the proxy does to requests whose method and path match; counts go down as faults are dealt.

    `delay`: seconds before each reply to a GET; `sent`: bytes of the replies to GETs so far.
    """

    part: str = ""
    lose_put_replies: int = 0
    refuse: int = 0
    status: int = 503
    code: str = "SlowDown"
    drop_condition: bool = False
    delay: float = 0.0
    sent: int = 0
    requests: list[str] = field(default_factory=list)


@contextmanager
def proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Run the faulty proxy for the block; yields its endpoint."""
    target = endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.requests.append(f"{self.command} {self.path}")
            hit = faults.part in self.path
            if hit and self.command == "GET":
                time.sleep(faults.delay)
            if hit and faults.refuse > 0:
                faults.refuse -= 1
                said = f"<Error><Code>{faults.code}</Code><Message>{faults.code} of the proxy</Message></Error>"
                self._answer(faults.status, {"Content-Type": "application/xml"}, said.encode())
                return
            headers = {
                k: v for k, v in self.headers.items() if not faults.drop_condition or k.lower() != "if-none-match"
            }
            connection = http.client.HTTPConnection(target)
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            if hit and self.command == "PUT" and faults.lose_put_replies > 0:
                faults.lose_put_replies -= 1
                self.close_connection = True
                return
            self._answer(reply.status, dict(reply.getheaders()), content)

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            length = str(len(content))
            for name, value in headers.items():
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "GET" and faults.part in self.path:
                faults.sent += len(content)
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
