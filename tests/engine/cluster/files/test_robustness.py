"""Whatever stands at whatever place of a cluster file, the check answers with findings, never with an exception."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cluster.files import check
from tests.support.clusterfiles import CLUSTERS

STRANGE = (None, 5, -1, 1.5, True, "", "text", [], [None], {}, {"a": None}, [[1]], {"b": {"c": 1}})
FILES = ["aws.yaml", "gcp.yaml", "azure.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    out = []
    for key, child in items:
        out += [(*path, key), *places(child, (*path, key))]
    return out


@pytest.mark.parametrize("source", FILES)
def test_strange_values_anywhere(source: str, tmp_path: Path) -> None:
    document = list(yaml.safe_load_all((CLUSTERS / source).read_text()))[-1]
    every = [(place, value) for place in places(document) for value in STRANGE]
    path = tmp_path / "file.yaml"
    for place, value in random.Random(0).sample(every, 60):
        changed = copy.deepcopy(document)
        node = changed
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value
        path.write_text(yaml.safe_dump(changed, sort_keys=False))
        for problem in check(path).problems:
            assert "\n" not in str(problem)
