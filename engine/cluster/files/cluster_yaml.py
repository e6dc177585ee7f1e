"""Reading a cluster file as Ray and Kubernetes read it (YAML 1.1, several documents), with limits and without repeated
keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engine import regular
from engine.errors import ConfigError
from engine.spec import yaml as strict

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 64


class Loader(strict.Safe):  # type: ignore[misc]
    """Safe YAML that refuses a key that appears twice or is not text."""


def _mapping(loader: Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    seen: set[str] = set()
    for key in own:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
    loader.flatten_mapping(node)
    out = loader.construct_mapping(node, deep=True)
    for key in out:
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not text: put it in quotes", node.start_mark
            )
    return out


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(path: Path) -> list[Any]:
    """The documents of a YAML file, empty ones left out; raises ConfigError with one line."""
    where = str(path)
    try:
        text = regular.read(path, MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise ConfigError(where, "is not UTF-8 text", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(where, f"cannot be read: {strict.reason(error)}", "check the path") from None
    try:
        strict.check_events(text, where, Loader, depth=MAX_DEPTH, nodes=MAX_NODES, plain=False)
        documents = [document for document in yaml.load_all(text, Loader=Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(where + line, f"is not valid YAML: {error.problem or error.context}", "correct it") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(where, f"is not valid YAML: {error}", "correct it") from None
    if not documents:
        raise ConfigError(where, "holds no settings", "start from a file in clusters/")
    _limit(documents, where)
    return documents


def _limit(documents: list[Any], where: str) -> None:
    """Refuse what aliases blow up: too many values, or a value that contains itself."""
    count = 0
    stack: list[tuple[Any, int]] = [(documents, 0)]
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(where, "holds too many or too deeply nested values", "write it without nested aliases")
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        stack += [(child, depth + 1) for child in children]
