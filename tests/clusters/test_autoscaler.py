"""Ray's own autoscaler on fake GPU nodes: from none to three and back to none, with a spot notice in the middle of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clusters
from tests.support.clusters import ROOT, Head
from tests.support.runs import SmallRun, digest

GPU_NODES = 3
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


OBSERVER = """
import json, sys, time, ray

pytestmark = pytest.mark.usefixtures("real_clusters")
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
while True:
    facts = [{"id": n["NodeID"], "labels": n["Labels"]} for n in ray.nodes() if n["Alive"]]
    with open(sys.argv[2], "a") as out:
        print(json.dumps(facts), file=out)
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


def nodes(head: Head) -> list[dict[str, Any]]:
    """The GPU nodes that are up."""
    path = head.folder / "nodes.jsonl"
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.2)
    found = json.loads(path.read_text().splitlines()[-1])
    return [node for node in found if LABELS.items() <= node["labels"].items()]


def wait_for_nodes(head: Head, count: int, seconds: float) -> float:
    began = time.monotonic()
    while len(nodes(head)) != count:
        assert time.monotonic() - began < seconds, f"{len(nodes(head))} GPU nodes, not {count}, after {seconds} s"
        time.sleep(0.5)
    return time.monotonic() - began


def driver(head: Head, *arguments: str) -> subprocess.Popen[str]:
    env = head.env | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.Popen(words, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_from_none_to_three_and_back_with_a_drain_between(head: Head, small: SmallRun, tmp_path: Path) -> None:
    assert nodes(head) == []
    words = small.words(actors=3, cpus_per_actor=1, wait=120, labels=json.dumps(LABELS), stall=20)
    process = driver(head, "generate", "quickstart", "-o", str(tmp_path / "out"), *words)
    up = wait_for_nodes(head, GPU_NODES, 120)
    tars = lambda: len(list((tmp_path / "out/data").glob("*.tar")))  # noqa: E731
    while tars() < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    drained = nodes(head)[0]["id"]
    order = [str(clusters.RAY), "drain-node", "--address", head.address, "--node-id", drained]
    order += [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "10",
    ]
    done = subprocess.run(order, env=head.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    assert digest((tmp_path / "out/manifest.parquet").read_bytes()) == small.manifest
    down = wait_for_nodes(head, 0, 120)
    print(f"three nodes {up:.0f} s after the start, none {down:.0f} s after the end")


def test_a_node_group_that_never_comes_is_one_line(head: Head, small: SmallRun, tmp_path: Path) -> None:
    words = small.words(actors=2, cpus_per_actor=1, wait=5, labels='{"mimeo/group": "h100"}')
    process = driver(head, "generate", "quickstart", "-o", str(tmp_path / "out"), *words)
    last = process.communicate(timeout=200)[0].strip().splitlines()[-1]
    assert process.returncode == 6
    assert last.startswith("error: resources.wait: 0 of 1 places of 1 CPU with mimeo/group=h100 came within 5 s")


def test_no_gpu_in_the_cluster_is_one_line(head: Head, small: SmallRun, tmp_path: Path) -> None:
    words = [word.replace("device=cpu", "device=cuda") for word in small.words()]
    process = driver(head, "generate", "quickstart", "-o", str(tmp_path / "out"), *words)
    last = process.communicate(timeout=200)[0].strip().splitlines()[-1]
    assert process.returncode == 6, last
    assert last.startswith("error: resources.device: cuda is asked for, the cluster has 0 GPUs")
