"""JSON schemas to one-line problems, and Kubernetes' resource definitions to JSON schemas."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from engine.cluster.files.findings import Findings, join, mapping, nearest
from engine.errors import ConfigError

KEPT = ("enum", "minimum", "maximum", "pattern", "minLength", "maxLength", "minItems", "maxItems")
NAMES = {"null": "empty", "boolean": "true or false", "object": "a mapping", "array": "a list", "string": "text"}
NAMES |= {"integer": "a whole number", "number": "a number"}


def _properties(validator: Any, properties: dict[str, Any], value: Any, schema: Any) -> Iterator[Any]:
    """`properties`, where a missing one that has a `default` is judged as if it stood there."""
    for name, part in properties.items() if isinstance(value, dict) else ():
        if name in value or "default" in mapping(part):
            given = value[name] if name in value else part["default"]
            yield from validator.descend(given, part, path=name, schema_path=name)


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"properties": _properties})


@functools.cache
def load(name: str) -> dict[str, Any]:
    """The schemas in a file of this folder by name; each carries the others, to which it may refer."""
    parts = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))["$defs"]
    return {name: {**part, "$defs": parts} for name, part in parts.items()}


def validate(findings: Findings, schema: dict[str, Any], document: Any, prefix: str = "") -> None:
    """Note every violation of a schema at its dotted key; a key that has a problem already gets no second one."""
    errors = Validator(schema).iter_errors(document)
    for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path]):
        key = functools.reduce(join, error.absolute_path, prefix)
        for where, what, fix in _explain(error, key):
            if not findings.has(where):
                findings.problem(where, what, fix)


def _explain(error: Any, key: str) -> list[tuple[str, str, str]]:
    value, rule, wanted = error.instance, error.validator, error.validator_value
    if rule == "additionalProperties":
        known = mapping(error.schema.get("properties"))
        names = [name for name in value if name not in known]
        return [(join(key, name), "is not a known field", nearest(str(name), known)) for name in names]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    what, fix = error.message.splitlines()[0][:200], "correct it"
    if rule == "required":
        key, what, fix = join(key, error.message.split("'")[1]), "is missing", "add it"
    elif rule == "type":
        is_type = Validator.TYPE_CHECKER.is_type
        what = f"is {next((words for kind, words in NAMES.items() if is_type(value, kind)), type(value).__name__)}"
        fix = f"write {' or '.join(NAMES[name] for name in wanted)}"
    elif rule in ("enum", "const"):
        what, fix = f"is {value!r}", nearest(str(value), map(str, wanted), "write one of")
    elif rule == "minItems":
        what, fix = "is empty", "add an item"
    if "error" in error.schema and (rule != "type" or value is None):
        what, _, fix = error.schema["error"].partition("; ")
    return [(key, what, fix)]


def from_crd(node: dict[str, Any]) -> dict[str, Any]:
    """A part of an OpenAPI v3 schema of a CustomResourceDefinition as JSON schema; unknown fields are refused."""
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out: dict[str, Any] = {name: node[name] for name in KEPT if name in node}
    if "type" in node:
        out["type"] = [node["type"], "null"] if node.get("nullable") else node["type"]
        if node.get("nullable") and "enum" in out:
            out["enum"] = [*out["enum"], None]
    properties = mapping(node.get("properties"))
    if properties:
        out["properties"] = {name: from_crd(mapping(child)) for name, child in properties.items()}
        out["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    for name in ("items", "additionalProperties"):
        if name not in out and isinstance(node.get(name), dict):
            out[name] = from_crd(node[name])
    defaults = {name for name, child in properties.items() if "default" in mapping(child)}
    out["required"] = [name for name in node.get("required", ()) if name not in defaults]
    return out


def load_crd(folder: Path, kind: str) -> dict[str, Any] | None:
    """The JSON schema of ray.io/v1 `kind` from KubeRay's definitions in a folder, or None when none defines it."""
    if not folder.is_dir():
        raise ConfigError("KUBERAY_CRD_DIR", f"{folder} is not a folder", "name the folder with KubeRay's CRD files")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(folder.glob("*.yaml")):
        if kind.lower() not in path.name.lower():
            continue
        try:
            crd = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError(str(path), "is not readable YAML", "fetch it again") from None
        spec = mapping(mapping(crd).get("spec"))
        if mapping(spec.get("names")).get("kind") != kind:
            continue
        for version in spec.get("versions", ()):
            if mapping(version).get("name") == "v1":
                schema = from_crd(mapping(mapping(version.get("schema")).get("openAPIV3Schema")))
                schema["properties"] = {**mapping(schema.get("properties")), "metadata": {"type": "object"}}
                return schema
    return None
