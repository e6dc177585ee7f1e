"""Recipes in, frozen specs out: overrides, near matches for misspelt keys, relative paths, and the identity hash."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from engine.errors import ConfigError
from engine.regular import Json
from engine.spec import yaml as strict_yaml
from engine.spec.recipe import RunSpec
from engine.spec.sources import Source
from engine.spec.training import DitSpec, PixelSpec, ViewsSpec

NOT_IDENTITY = ("resources", "train", "evaluate", "search", "equivalence", "deliberate", "ablation", "worth")
# Keys that came after the first recipes: no part of the identity at these values, so that older outputs stay valid.
ADDED: dict[str, object] = {
    "match": None,
    "conditions.caption.instruction": None,
    "conditions.features.normalise": False,
    "generate.cache_interval": 1,
    "generate.guidance_interval": [0.0, 1.0],
    "generate.guidance": "cfg",
    "generate.guidance_on": "both",
    "generate.quality_suffix": "",
    "judge.controls": ["duplicated", "photocopy", "reconstructed", "augmented"],
    "judge.metric": "accuracy",
    "judge.mixing": "equal",
    "judge.tune": False,
    "model.class_ids": {},
    "model.visual_token": False,
    "pretrain.denoiser": "unet",
    "pretrain.held_out": 0.0,
    "pretrain.pixel": PixelSpec().model_dump(mode="json"),
    "pretrain.pixel.objective": "edm",
    "pretrain.space": "latent",
    "pretrain.views": ViewsSpec().model_dump(mode="json"),
    "pretrain.encoder": None,
    "split.near_duplicates": "together",
    "pretrain.dit": DitSpec().model_dump(mode="json"),
}
ADDED_TO_SOURCE: dict[str, dict[str, object]] = {  # the same, by kind
    "folder": {"class_names": None, "label_column": None},
    "webdataset": {"image_key": None},
}
PATHS = (
    "source.path",
    "source.test_path",
    "model.checkpoint",
    "model.lora",
    "conditions.caption.path",
    "conditions.features.path",
    "evaluate.sets.*.source.path",
    "evaluate.sets.*.source.test_path",
    "train.weights",
)


def load(path: str | Path, overrides: Iterable[str] = ()) -> RunSpec:
    """Read a recipe, apply `a.b=c` overrides and validate; raises ConfigError with one line.

    Relative paths in the recipe are relative to the recipe; those in overrides to the working folder.
    """
    path = Path(path)
    data = strict_yaml.read(path)
    if not isinstance(data, dict):
        raise ConfigError(
            str(path),
            "holds no settings" if data is None else "is not a mapping of keys to values",
            "start from a recipe in pipelines/recipes",
        )
    data = _resolve_paths(data, path.resolve().parent)
    for override in overrides:
        data = _override(data, override)
    return validate(_resolve_paths(data, Path.cwd()), where=str(path))


def validate(data: Mapping[str, Any], where: str = "spec") -> RunSpec:
    """Validate plain data as a RunSpec; the first fault becomes one ConfigError line."""
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from None


def _override(data: Json, override: str) -> Json:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) for part in parts):
        raise ConfigError(f"--set {override}", "is not KEY=VALUE", "write for example --set generate.count=1000")
    value = strict_yaml.parse(text, f"--set {override}")
    out = dict(data)
    node = out
    for part in parts[:-1]:
        child = node.get(part)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    node[parts[-1]] = value
    return out


def is_local(value: str) -> bool:
    """Whether a place that a recipe names is a path of this machine, going by its form."""
    return "://" not in value and "::" not in value


def at_home(key: str, value: str) -> Path:
    """A path with `~` and `~user` resolved; ConfigError about `key` where no such user is here, or the path holds a
    NUL."""
    path = Path(os.path.expanduser(value))  # noqa: PTH111 - Path's own raises for unknown users
    if str(path).startswith("~") and not os.path.lexists(path):
        raise ConfigError(key, f"{value}: this machine has no user {path.parts[0][1:]}", "write the path out")
    if "\0" in value:
        raise ConfigError(key, f"{value} holds a NUL character", "correct the path")
    return path


def change_paths(data: Json, change: Callable[[str, str], str]) -> Json:
    """A copy of plain settings in which `change(dotted key, path)` stands for each path that is set."""
    for dotted in PATHS:
        data = _changed(data, dotted.split("."), partial(change, dotted))
    return data


def _changed(node: Any, parts: list[str], change: Callable[[str], str]) -> Any:
    if not parts:
        return change(node) if isinstance(node, str) and node else node
    if not isinstance(node, dict):
        return node
    names = list(node) if parts[0] == "*" else [name for name in parts[:1] if name in node]
    return {**node, **{name: _changed(node[name], parts[1:], change) for name in names}}


def _resolve_paths(data: Json, base: Path) -> Json:
    """Make `./x`, `../x` and existing relative paths absolute against `base`; Hub ids and URLs stay as they are."""

    def resolve(dotted: str, value: str) -> str:
        if not is_local(value) or at_home(dotted, value).is_absolute():
            return value
        candidate = base / value
        hub_id = dotted == "model.checkpoint" and re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not value.startswith(".")
        if hub_id and not os.path.lexists(candidate):
            return value
        return (
            os.path.realpath(candidate) if "*" not in value else str(candidate)
        )  # Path's own raises for loops of links

    return change_paths(data, resolve)


def _model_at(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Follow an error location; returns (dotted names without union tags, known keys of the section that it ends
    in)."""
    names: list[str] = []
    known = list(model.model_fields)
    current: Any = model
    for part in loc:
        if isinstance(current, tuple):  # a tagged union: the part is the tag
            chosen = [m for m in current if part in get_args(m.model_fields["kind"].annotation)]
            current = chosen[0] if chosen else None
            known = list(current.model_fields) if current else []
            continue
        names.append(str(part))
        if get_origin(current) is dict:
            current = get_args(current)[1]
            continue
        if isinstance(current, type) and issubclass(current, BaseModel):
            known = list(current.model_fields)
            field = current.model_fields.get(str(part))
            annotation = field.annotation if field else None
            members = tuple(m for m in get_args(annotation) if isinstance(m, type) and issubclass(m, BaseModel))
            mapping = get_origin(annotation) is dict
            current = annotation if mapping else members[0] if len(members) == 1 else members or annotation
        else:
            current = None
    return names, known


def _explain(error: ValidationError, where: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    names, known = _model_at(RunSpec, first["loc"])
    key = ".".join(names) or "recipe"
    kind, message = first["type"], str(first["msg"])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
        return ConfigError(where, f"unknown key {key}", fix)
    if kind == "missing":
        return ConfigError(where, f"{key} is missing", "add it to the recipe")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = ", ".join(
            get_args(member.model_fields["kind"].annotation)[0] for member in get_args(get_args(Source)[0])
        )
        return ConfigError(where, f"{key}.kind is missing or unknown", f"use one of {kinds}")
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    value = first.get("input")
    got = (
        f" (got {value!r})"
        if isinstance(value, str | int | float | bool | type(None)) and len(repr(value)) < 80
        else ""
    )
    return ConfigError(
        where,
        f"{key} {message}{got}" if message.startswith("must") else f"{key}: {message}{got}",
        "correct the recipe or --set",
    )


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(data)


def digest(data: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of plain data."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def plain(spec: RunSpec) -> Json:
    """The spec as JSON-ready data, defaults written out."""
    return spec.model_dump(mode="json")


def identity(spec: RunSpec) -> Json:
    """What makes a run that run: all of the spec but `resources`, how many failures are put up with, and `ADDED` keys
    at their default."""
    data = {key: value for key, value in plain(spec).items() if key not in NOT_IDENTITY}
    _drop(data, ["generate", "gate", "max_quarantined"])
    for dotted, default in ADDED.items():
        *above, last = dotted.split(".")
        section = data
        for part in above:
            section = section.get(part) or {}
        if last in section and section[last] == default:
            del section[last]
    if data["judge"]["multiples"] is None:
        data["judge"]["multiples"] = [1]  # the default of before: what was begun with it is still the same run
    source = data["source"]
    for key, default in ADDED_TO_SOURCE.get(source["kind"], {}).items():
        if source[key] == default:
            del source[key]
    return data


def spec_hash(spec: RunSpec) -> str:
    """The run's identity: SHA-256 (hex) of `identity`."""
    return digest(identity(spec))


def _drop(data: Json, parts: list[str]) -> None:
    for part in parts[:-1]:
        data = data.get(part) or {}
    data.pop(parts[-1], None)


def sample_key(spec: RunSpec) -> int:
    """The 64-bit key that sample seeds derive from.

    Count, shard size and judge are left out, so that a longer plan begins with the samples of a shorter one; paths are
    left out, so that moving the data or the model changes nothing.
    """
    data = identity(spec)
    data.pop("judge")
    for dotted in PATHS:
        _drop(data, dotted.split("."))
    data["generate"] = {k: v for k, v in data["generate"].items() if k not in ("count", "shard_size")}
    return int.from_bytes(hashlib.sha256(canonical_json(data).encode()).digest()[:8], "little")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as `a.b: old -> new`, for the message on a changed recipe."""
    out = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return out
