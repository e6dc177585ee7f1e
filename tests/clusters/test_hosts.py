"""Hosts with addresses of their own: a run over an S3 store while one host is cut off and another one crashes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import hosts
from tests.support.clusters import processes
from tests.support.hosts import Network
from tests.support.runs import SHARDS, SmallRun, digest

pytestmark = pytest.mark.usefixtures("real_clusters")

URL = "s3://runs/out"
WAIT = f"""
import s3fs, time
while (made := len(s3fs.S3FileSystem(use_listings_cache=False).glob("{URL}/data/*.tar"))) < 3:
    time.sleep(0.2)
print(made)
"""  # says how many shards there are, once there are a few


@pytest.fixture
def three(real_clusters: None) -> Iterator[Network]:
    with hosts.network(3) as made:
        yield made


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 500
    while not condition():
        assert process.poll() is None, said()
        assert time.monotonic() < deadline, said()
        time.sleep(0.3)


def test_a_run_over_three_hosts_survives_a_cut_and_a_crash(three: Network, small: SmallRun, tmp_path: Path) -> None:
    three.store()
    for k in range(3):
        three.start(k, 1)
        if k == 0:
            three.ready(1)
    three.ready(3)
    words = small.words(actors=3, cpus_per_actor=1, stall=15)
    driver = three.mimeo("generate", "quickstart", "-o", URL, *words)
    waiting = three.popen(three.switch, sys.executable, "-c", WAIT, log="waiting.log")
    wait_until(lambda: waiting.poll() is not None, driver, three.said)
    three.cut(1)
    three.crash(2)
    cut = time.monotonic()
    assert int(three.said("waiting.log")) < SHARDS // 2, "the run was nearly over before a host was lost"
    assert driver.wait(timeout=500) == 0, three.said()
    print(f"{time.monotonic() - cut:.0f} s after the loss of two of three hosts")
    print(three.said())
    verify = three.mimeo("verify", URL, log="verify.log")
    assert verify.wait(timeout=100) == 0, three.said("verify.log")
    code = f"import s3fs, sys; sys.stdout.buffer.write(s3fs.S3FileSystem().cat('{URL}/manifest.parquet'))"
    three.popen(three.switch, sys.executable, "-c", code, log="manifest").wait()
    assert digest((three.folder / "manifest").read_bytes()) == small.manifest


def contents(output: Path) -> dict[Path, bytes]:
    """Every file but what workers say of their own time."""
    paths = [path for path in output.rglob("*") if path.is_file() and "usage" not in path.relative_to(output).parts]
    return {path: path.read_bytes() for path in paths}


def test_a_frozen_host_holds_nothing_up_and_spoils_nothing_when_it_wakes(
    three: Network, small: SmallRun, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for k in (0, 1):
        three.start(k, 1)
        three.ready(k + 1)
    words = small.words(actors=2, cpus_per_actor=1, stall=15)
    driver = three.mimeo("generate", "quickstart", "-o", str(output), *words)
    wait_until(lambda: len(list((output / "data").glob("*.tar"))) >= 6, driver, three.said)
    frozen = three.freeze(1)
    assert len(list((output / "data").glob("*.tar"))) < SHARDS
    assert driver.wait(timeout=400) == 0, three.said()
    files = contents(output)
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    time.sleep(15)  # the frozen worker ends its shard and finds it published
    assert contents(output) == files
    assert digest((output / "manifest.parquet").read_bytes()) == small.manifest


def test_a_fine_tune_goes_on_with_the_workers_that_are_left(three: Network, small: SmallRun, tmp_path: Path) -> None:
    """Two elastic workers on two hosts; one host crashes after a checkpoint."""
    three.env["GLOO_SOCKET_IFNAME"] = "eth0"  # these hosts share one name
    output = tmp_path / "out"
    for k in (0, 1):
        three.start(k, 1)
        three.ready(k + 1)
    settings = ["match.steps=300", "match.batch=8", "match.checkpoint_every=10", "match.samples=0", "match.rank=2"]
    words = small.words(train_workers=2, train_workers_min=1)
    words += [word for one in settings for word in ("--set", one)]
    driver = three.mimeo("match", "quickstart", "-o", str(output), *words)
    wait_until(lambda: bool(list(output.glob("checkpoints/match*"))), driver, three.said)
    trains = [one for one in processes(three.folder / three.names[1]) if "TrainWorker" in " ".join(one.cmdline())]
    assert trains, "no worker on the host that is to be lost"
    three.crash(1)
    assert not (output / "match/model").exists(), "it was over before the host was lost"
    assert driver.wait(timeout=500) == 0, three.said()
    assert (output / "match/model/pytorch_lora_weights.safetensors").is_file()


def test_a_path_that_a_node_does_not_see_is_refused(three: Network, small: SmallRun, tmp_path: Path) -> None:
    output = tmp_path / "disk" / "out"
    output.parent.mkdir()
    three.start(0, 1)
    three.ready(1)
    three.start(1, 1, "unshare", "-m", "bash", "-c", f'mount -t tmpfs tmpfs {output.parent} && exec "$@"', "-")
    three.ready(2)
    driver = three.mimeo("generate", "quickstart", "-o", str(output), *small.words(actors=2, cpus_per_actor=1))
    assert driver.wait(timeout=200) == 4, three.said()
    last = three.said().strip().splitlines()[-1]
    assert last.startswith("error: node 10.77.0.2")
    assert f"does not see the output {output}" in last
    assert "object store" in last


def test_a_run_whose_cluster_died_goes_on_in_a_new_one(three: Network, small: SmallRun, tmp_path: Path) -> None:
    """Head, node and driver end at once; a new cluster of another size resumes from the output alone."""
    output = tmp_path / "out"
    for k in (0, 1):
        three.start(k, 1)
        three.ready(k + 1)
    words = ["generate", "quickstart", "-o", str(output), *small.words(actors=2, cpus_per_actor=1)]
    driver = three.mimeo(*words)
    wait_until(lambda: len(list((output / "data").glob("*.tar"))) >= 6, driver, three.said)
    driver.kill()
    three.crash(0)
    three.crash(1)
    assert len(list((output / "data").glob("*.tar"))) < SHARDS
    three.start(0, 2)
    three.ready(1)
    assert three.mimeo(*words, log="again.log").wait(timeout=400) == 0, three.said("again.log")
    assert digest((output / "manifest.parquet").read_bytes()) == small.manifest
