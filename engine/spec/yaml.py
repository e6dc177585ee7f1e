"""Strict YAML: no aliases, tags, duplicate keys or octal surprises, and numbers such as 1e9 are numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from engine import regular
from engine.errors import ConfigError
from engine.regular import Json

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # values and keys; the classes of ImageNet-21k are a fifth
MAX_DEPTH = 32
# libyaml's parser, in every wheel of PyYAML: a megabyte takes the other one half a minute
Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(Safe):  # type: ignore[misc]
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


def _construct_mapping(loader: Loader, node: yaml.MappingNode, deep: bool = True) -> Json:
    out: Json = {}
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


def check_events(text: str, where: str, loader: Any, *, depth: int, nodes: int, plain: bool = True) -> None:
    """Refuse a text that is nested too deeply or holds too many values (ConfigError) before anything is made of it.

    `plain`: anchors, aliases and several documents are refused too.
    """
    level = count = documents = 0
    for event in yaml.parse(text, Loader=loader):
        count += isinstance(event, yaml.NodeEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if plain and (isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)):
            raise ConfigError(where, "anchors and aliases are not allowed", "write the value out")
        if level > depth:
            raise ConfigError(where, "is nested too deeply", "simplify it")
        if count > nodes:
            raise ConfigError(where, f"holds more than {nodes:,} values", "simplify it")
        if plain and documents > 1:
            raise ConfigError(where, "holds more than one document", "simplify it")


def parse(text: str, where: str) -> Any:
    """Parse one YAML document; raises ConfigError with the line of the fault."""
    if len(text) > MAX_BYTES:
        raise ConfigError(where, "is larger than 1 MiB", "simplify it")
    try:
        check_events(text, where, Loader, depth=MAX_DEPTH, nodes=MAX_NODES)
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
        text = regular.read(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(where, "is not UTF-8 text", "give the path of a YAML recipe") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(where, "no such recipe", "check the path (pipelines/recipes holds examples)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(where, reason(error), "give the path of a YAML recipe") from None
    return parse(text, where)


def reason(error: OSError | ValueError) -> str:
    """Why a file cannot be read: the system's word for it, else the exception's."""
    return str(getattr(error, "strerror", None) or error)
