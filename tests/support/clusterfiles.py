"""Cluster files with one thing changed: a dotted key such as `spec.groups[0].name`, set, added or removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
REMOVE = object()


def parts(key: str) -> list[str | int]:
    """The steps of a dotted key; names with dots or spaces stand in quotes: `a."nvidia.com/gpu".b[0]`."""
    found = re.findall(r'"([^"]+)"|\[(\d+)\]|([^.\["]+)', key)
    return [int(index) if index else quoted or name for quoted, index, name in found]


def planted(source: str, key: str, value: Any, folder: Path) -> Path:
    """A copy of a shipped file with one change in the document that has the key; returns its path in `folder`."""
    documents = list(yaml.safe_load_all((CLUSTERS / source).read_text()))
    steps = parts(key)
    document = next((d for d in documents if steps[0] in d), None) if len(documents) == 1 else documents[-1]
    node: Any = documents[0] if document is None else document
    for step in steps[:-1]:
        if isinstance(node, dict):
            node = node.setdefault(step, {})
        else:
            node = node[step]
    if value is REMOVE:
        del node[steps[-1]]
    elif callable(value):
        node[steps[-1]] = value(node[steps[-1]])
    elif isinstance(node, list) and steps[-1] == len(node):
        node.append(value)
    else:
        node[steps[-1]] = value
    path = folder / Path(source).name
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path
