"""Nodes: places are counted as a brute force counts them, waiting ends in one line, and each kind of unfit node is
named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cluster import nodes
from engine.cluster.session import session
from engine.errors import ClusterError, MimeoError, StorageError
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import open_store
from tests.support.synthetic import Quiet

AMOUNTS = st.integers(0, 8).map(lambda quarters: quarters / 4)


@given(
    st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)}), max_size=4), AMOUNTS, AMOUNTS
)
def test_places_are_those_that_fit_one_after_another(have: list[dict[str, int]], cpus: float, gpus: float) -> None:
    if not cpus + gpus:
        return
    expected = 0
    for node in have:
        left = dict(node)
        while left["CPU"] >= cpus and left["GPU"] >= gpus:
            left = {"CPU": left["CPU"] - cpus, "GPU": left["GPU"] - gpus}
            expected += 1
    assert sum(nodes._fit(node, {"CPU": cpus, "GPU": gpus}) for node in have) == expected


def test_places_of_the_cluster_and_of_its_labels(ray_cluster: None) -> None:
    assert nodes.slots({"CPU": 1.0}, {}) == 4
    assert nodes.slots({"CPU": 0.5}, {}) == 8
    assert nodes.slots({"CPU": 1.0, "GPU": 1.0}, {}) == 0
    assert nodes.slots({"CPU": 1.0}, {"mimeo/group": "gpu"}) == 0
    (node,) = nodes.alive()
    assert nodes.slots({"CPU": 1.0}, {"ray.io/node-id": node["NodeID"]}) == 4


def test_what_never_comes_ends_the_wait_in_one_line(ray_cluster: None) -> None:
    reporter = Quiet()
    resources = ResourcesSpec(wait=1, labels={"mimeo/group": "gpu"})
    with pytest.raises(ClusterError) as caught:
        nodes.wait_for({"CPU": 2.0, "GPU": 1.0}, 3, resources, reporter)
    assert str(caught.value) == (
        "resources.wait: 0 of 1 places of 2 CPU + 1 GPU with mimeo/group=gpu came within 1 s (the cluster has 4 CPU); "
        "check the node group's maximum, quota and labels, or wait longer"
    )
    assert reporter.notes == ["waiting up to 1 s for nodes: 3 x 2 CPU + 1 GPU with mimeo/group=gpu"]
    nodes.wait_for({"CPU": 2.0}, 2, ResourcesSpec(wait=1), reporter)  # they are there


def test_places_that_do_not_come_are_told_of_once(ray_cluster: None) -> None:
    reporter = Quiet()
    for places in (4, 9):
        with nodes.told_of_missing({"CPU": 1.0}, places, ResourcesSpec(wait=1), reporter):
            time.sleep(2)
    with nodes.told_of_missing({"CPU": 1.0}, 9, ResourcesSpec(wait=1), reporter):
        pass  # over before
    time.sleep(1.5)
    assert reporter.notes == [
        "4 of 9 places of 1 CPU came within 1 s; the run goes on with them (is the node "
        "group's maximum or its quota lower?)"
    ]


def test_a_fit_cluster_passes_and_keeps_no_token(ray_cluster: None, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    nodes.check(store)
    nodes.check(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"Ray": "2.59.0"}, ClusterError, "node 10.0.0.1 (gpu-1): runs Ray 2.59.0, the driver "),
        ({"Python": "3.9"}, ClusterError, "runs Python 3.9"),
        ({"mimeo": "0.0"}, ClusterError, "install mimeo"),
        ({"missing": ["diffusers", "PIL"]}, ClusterError, "lacks the packages diffusers, PIL; install"),
        ({"token": None}, StorageError, "does not see the output"),
        ({"token": "another"}, StorageError, "does not see the output"),
        ({"token": "error: access denied"}, StorageError, "(access denied); give the node's role the right to"),
    ],
)
def test_each_unfit_node_is_named(tmp_path: Path, change: dict[str, Any], kind: type[MimeoError], says: str) -> None:
    found = {**nodes.facts(), "token": "right", "host": "gpu-1"}
    nodes._compare("10.0.0.1", found, "right", open_store(str(tmp_path)))
    with pytest.raises(kind) as caught:
        nodes._compare("10.0.0.1", found | change, "right", open_store(str(tmp_path)))
    assert says in str(caught.value)
    assert str(caught.value).startswith("node 10.0.0.1 (gpu-1): ")


def test_another_version_of_ray_is_one_line(ray_cluster: None) -> None:
    """Ray compares versions when a driver joins."""
    import ray

    code = (
        "import ray; ray.__version__ = '2.59.0'\n"
        "from engine.cluster.session import session; from engine.spec.recipe import ResourcesSpec\n"
        "from engine.errors import ClusterError\n"
        "try:\n    with session(ResourcesSpec()): print('joined')\nexcept ClusterError as "
        "error: print('line:', error)\n"
    )
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("line: ")]
    assert "Version mismatch" in line
    assert "2.59.0" in line


def test_a_joined_cluster_is_checked(ray_cluster: None, tmp_path: Path) -> None:
    with session(ResourcesSpec(), store=open_store(str(tmp_path))):
        pass
