"""JSON schemas to one-line problems, and Kubernetes' resource definitions to JSON schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engine.cluster.files.findings import Findings, join, mapping, nearest
from engine.errors import ConfigError

KEPT = ("enum", "minimum", "maximum", "pattern", "minLength", "maxLength", "minItems", "maxItems")
NAMES = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number"}
NAMES |= {"boolean": "true or false", "null": "empty"}


def validate(findings: Findings, schema: dict[str, Any], document: Any, prefix: str = "") -> None:
    """Note every violation of a schema at its dotted key; a key that has a problem already gets no second one."""
    import jsonschema

    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path]):
        key = prefix
        for part in error.absolute_path:
            key = join(key, part)
        for where, what, fix in _explain(error, key):
            if not findings.has(where):
                findings.problem(where, what, fix)


def _explain(error: Any, key: str) -> list[tuple[str, str, str]]:
    value, rule = error.instance, error.validator
    if rule == "additionalProperties" and isinstance(value, dict):
        known = mapping(error.schema.get("properties"))
        return [
            (join(key, name), "is not a known field", nearest(str(name), known)) for name in value if name not in known
        ]
    if rule == "required":
        name = error.message.split("'")[1]
        return [(join(key, name), "is missing", "add it")]
    if rule == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return [
            (key, f"is {_named(value)}", f"write {' or '.join(NAMES.get(str(name), str(name)) for name in wanted)}")
        ]
    if rule == "enum":
        return [(key, f"is {value!r}", f"write one of {', '.join(map(str, error.validator_value))}")]
    if rule == "minItems":
        return [(key, "is empty", "add an item")]
    return [(key, error.message.splitlines()[0][:200], "correct it")]


def _named(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    for kind, name in (
        (dict, "a mapping"),
        (list, "a list"),
        (str, "text"),
        (int, "a whole number"),
        (float, "a number"),
    ):
        if isinstance(value, kind):
            return name
    return type(value).__name__


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
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = from_crd(node["additionalProperties"])
    defaults = {name for name, child in properties.items() if "default" in mapping(child)}
    if required := [name for name in node.get("required", ()) if name not in defaults]:
        out["required"] = required
    if isinstance(node.get("items"), dict):
        out["items"] = from_crd(node["items"])
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
