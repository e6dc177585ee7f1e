"""Ray's own autoscaler on fake GPU nodes: from none to three and back to none, with a spot notice in the middle of a
run."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import clusters
from tests.support.clusters import ROOT, Head
from tests.support.runs import SmallRun, digest, small_run

GPU_NODES = 3
WINDOW = 6  # shards
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # what the provider takes the head for
ENV = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
LABELS = {"mimeo/group": "gpu"}


def config(address: str) -> dict[str, Any]:
    """A cluster whose GPU nodes are processes of this machine; a node that idles for six seconds is given back."""
    return {
        "cluster_name": "fake",
        "max_workers": GPU_NODES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000},
                "labels": LABELS,
                "node_config": {},
                "min_workers": 0,
                "max_workers": GPU_NODES,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{
            key: []
            for key in (
                "initialization_commands",
                "setup_commands",
                "head_setup_commands",
                "worker_setup_commands",
                "head_start_ray_commands",
                "worker_start_ray_commands",
                "cluster_synced_files",
                "rsync_exclude",
                "rsync_filter",
            )
        },
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture(scope="module")
def head(real_clusters: None) -> Iterator[Head]:
    with clusters.head(1, env=ENV, autoscaling=config) as made:
        yield made


@pytest.fixture(scope="module")
def long(real_clusters: None, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Two minutes of work, so that there is a rate before and after."""
    return small_run(tmp_path_factory.mktemp("long"), shards=100, steps=120)


OBSERVER = """
import json, sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
while True:
    facts = [{"id": n["NodeID"], "labels": n["Labels"]} for n in ray.nodes() if n["Alive"]]
    with open(sys.argv[2], "a") as out:
        print(json.dumps({"time": time.time(), "nodes": facts}), file=out)
    time.sleep(0.5)
"""


@pytest.fixture(scope="module", autouse=True)
def _observer(head: Head) -> Iterator[None]:
    """One process that notes the nodes, since joining a cluster costs seconds."""
    words = [sys.executable, "-c", OBSERVER, head.address, str(head.folder / "nodes.jsonl")]
    process = subprocess.Popen(words, env=head.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()


def seen(head: Head) -> list[tuple[float, list[str]]]:
    """Each look of the observer: when, and the ids of the GPU nodes that were up."""
    path = head.folder / "nodes.jsonl"
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.2)
    looks = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (look["time"], [node["id"] for node in look["nodes"] if LABELS.items() <= node["labels"].items()])
        for look in looks
    ]


def nodes(head: Head) -> list[str]:
    return seen(head)[-1][1]


def wait_for_nodes(head: Head, count: int, seconds: float) -> float:
    began = time.monotonic()
    while len(nodes(head)) != count:
        assert time.monotonic() - began < seconds, f"{len(nodes(head))} GPU nodes, not {count}, after {seconds} s"
        time.sleep(0.5)
    return time.monotonic() - began


def drain(head: Head, node: str) -> None:
    """The notice that a cloud gives ten seconds before it takes a spot node back."""
    order = [str(clusters.RAY), "drain-node", "--address", head.address, "--node-id", node]
    order += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    order += ["--deadline-remaining-seconds", "10"]
    done = subprocess.run(order, env=head.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def take(head: Head, node: str) -> None:
    """The cloud takes the node: all of its processes end at once."""
    for process in clusters.processes(head.folder):
        with suppress(psutil.Error):
            if process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node:
                process.kill()


def rates(published: list[float], window: int = WINDOW) -> list[tuple[float, float]]:
    """Shards a second over each `window` of them, with the moment at which the last one was published."""
    return [(published[k], window / (published[k] - published[k - window])) for k in range(window, len(published))]


def mimeo(head: Head, *arguments: str) -> subprocess.Popen[str]:
    env = head.env | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.Popen(words, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def driver(head: Head, *arguments: str) -> subprocess.Popen[str]:
    head.env["RAY_ADDRESS"] = head.address
    try:
        return mimeo(head, *arguments)
    finally:
        del head.env["RAY_ADDRESS"]


def test_a_job_from_none_to_three_and_back_with_a_drain_between(head: Head, long: SmallRun, tmp_path: Path) -> None:
    """It asks for one node more than there may be; mimeo is in the nodes' image, so that the folder that is sent is
    empty."""
    assert nodes(head) == []
    out, sent = tmp_path / "out", tmp_path / "sent"
    sent.mkdir()
    words = long.words(actors=GPU_NODES + 1, cpus_per_actor=1, wait=60, labels=json.dumps(LABELS), stall=20)
    where = ["--cluster", head.dashboard, "--verb", "generate", "--output", str(out), "--working-dir", str(sent)]
    process = mimeo(head, "submit", "quickstart", *where, *words)
    up = wait_for_nodes(head, GPU_NODES, 120)
    tars = lambda: list((out / "data").glob("*.tar"))  # noqa: E731
    while len(tars()) < 3 * WINDOW:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    drained, notice = nodes(head)[0], time.time()
    drain(head, drained)
    time.sleep(10)
    take(head, drained)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert digest((out / "manifest.parquet").read_bytes()) == long.manifest
    assert f"{GPU_NODES} of {GPU_NODES + 1} places of 1 CPU with mimeo/group=gpu came within 60 s" in said
    down = wait_for_nodes(head, 0, 120)
    curve = rates(sorted(path.stat().st_mtime for path in tars()))
    before = statistics.median(rate for when, rate in curve if when < notice)
    gone = next(when for when, ids in seen(head) if when > notice and drained not in ids)
    again = next((when for when, ids in seen(head) if when > gone and len(ids) == GPU_NODES), None)
    back = next((when for when, rate in curve if when > gone and rate >= 0.9 * before), None)
    print(
        f"\nthree nodes {up:.0f} s after the start, none {down:.0f} s after the end; "
        f"{before:.2f} shards/s before the notice"
    )
    print(
        f"node gone {gone - notice:.0f} s after the notice; from then on three again "
        f"{(again or math.nan) - gone:.0f} s, rate {(back or math.nan) - gone:.0f} s"
    )
    assert again is not None, said
    assert back is not None, said
    assert back - gone <= 60


def test_a_node_group_that_never_comes_is_one_line(head: Head, small: SmallRun, tmp_path: Path) -> None:
    words = small.words(actors=2, cpus_per_actor=1, wait=5, labels='{"mimeo/group": "h100"}')
    process = driver(head, "generate", "quickstart", "-o", str(tmp_path / "out"), *words)
    last = process.communicate(timeout=200)[0].strip().splitlines()[-1]
    assert process.returncode == 6
    assert last.startswith("error: resources.wait: 0 of 1 places of 1 CPU with mimeo/group=h100 came within 5 s")
