"""Strict YAML: no aliases, tags, duplicate keys or octal surprises, and numbers such as 1e9 are numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32


class Loader(yaml.SafeLoader):
    """YAML 1.2's core schema for scalars: true/false, null, decimal integers and floats; all else is text."""


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first) + ([""] if _tag == "null" else [])
    )


def _construct_float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = str(node.value)
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{text} reads differently in different tools: write it without the leading zero, or in quotes",
            node.start_mark,
        )
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _construct_mapping(loader: Loader, node: yaml.MappingNode, deep: bool = True) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not text: put it in quotes", key_node.start_mark
            )
        if key in out:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _check_events(text: str, where: str) -> None:
    depth = documents = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(where, "anchors and aliases are not allowed", "write the value out")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or documents > 1:
            raise ConfigError(
                where, "is nested too deeply" if depth > MAX_DEPTH else "holds more than one document", "simplify it"
            )


def parse(text: str, where: str) -> Any:
    """Parse one YAML document; raises ConfigError with the line of the fault."""
    try:
        _check_events(text, where)
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{where}, line {mark.line + 1}" if mark else where
        raise ConfigError(line, str(error.problem or error.context or "is not YAML"), "correct the recipe") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ConfigError(where, f"is not YAML ({str(error).splitlines()[0]})", "correct the recipe") from None


def read(path: Path) -> Any:
    """Read a YAML file of at most 1 MiB; a directory, a device, a pipe or a binary file is refused, not waited for."""
    where = str(path)
    try:
        if not path.exists():
            raise ConfigError(where, "no such recipe", "check the path (pipelines/recipes holds examples)")
        if not path.is_file():
            raise ConfigError(where, "is not a regular file", "give the path of a YAML recipe")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(where, "is larger than 1 MiB", "give the path of a YAML recipe")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(where, "is not UTF-8 text", "give the path of a YAML recipe") from None
    except OSError as error:
        raise ConfigError(where, error.strerror or "cannot be read", "check the path and its permissions") from None
    return parse(text, where)
