"""A genuine S3 store for the nightly tier: Ceph's RadosGW, where MIMEO_CEPH names a script that starts one on
loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.clusters import end, free_port

SCRIPT = os.environ.get("MIMEO_CEPH", "")  # called with a folder, the store's port and the monitor's
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDCEPH", "AWS_SECRET_ACCESS_KEY": "SECRETCEPH"}
FORWARD = """
import asyncio, sys
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]))).serve_forever()
asyncio.run(main())
"""


@contextmanager
def radosgw() -> Iterator[str]:
    """Run the store for the block; yields its endpoint."""
    folder = Path(tempfile.mkdtemp(prefix="mimeo-ceph-", dir="/tmp"))
    port = free_port()
    words = ["bash", SCRIPT, str(folder / "ceph"), str(port), str(free_port())]
    try:
        with (folder / "log").open("w") as log:  # no pipe: its daemons would keep it open
            subprocess.run(words, stdout=log, stderr=log, check=True, timeout=300, stdin=subprocess.DEVNULL)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(folder)
        shutil.rmtree(folder, ignore_errors=True)
