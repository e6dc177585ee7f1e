"""Credentials that expire while a run writes to a store: one line, and the same command goes on once they are
renewed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from engine.storage.store import open_store
from tests.support import s3
from tests.support.clusters import ROOT
from tests.support.runs import SHARDS, SmallRun, digest
from tests.support.s3 import Faults

pytestmark = pytest.mark.usefixtures("real_clusters")


def run(small: SmallRun, url: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pipelines.cli", "generate", "quickstart", "-o", url, *small.words()]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_credentials_that_expire_in_the_middle_are_one_line(s3_endpoint: str, s3_url: str, small: SmallRun) -> None:
    faults = Faults(status=400, code="ExpiredToken")
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        url = f"{s3_url}/expired"
        store = open_store(url)
        process = run(small, url)
        deadline = time.monotonic() + 300
        while len([entry for entry in store.list("data/") if entry.name.endswith(".tar")]) < 6:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.3)
        faults.refuse = 10**6
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 4, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert "ExpiredToken" in errors[0], said
        assert "renew the credentials; then run the same command again" in errors[0]
        assert "Traceback" not in said
        faults.refuse = 0
        made = len([entry for entry in store.list("data/") if entry.name.endswith(".tar")])
        assert 6 <= made < SHARDS
        process = run(small, url)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        assert digest(store.read("manifest.parquet")) == small.manifest
