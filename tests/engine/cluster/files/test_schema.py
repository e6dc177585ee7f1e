"""KubeRay's own resource definitions, where a folder with them is named, are a second judge."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from engine.cluster.files import check
from engine.cluster.files.findings import Findings
from engine.cluster.files.schema import from_crd, load, validate
from tests.support.clusterfiles import CLUSTERS, planted

CRD = {
    "kind": "CustomResourceDefinition",
    "spec": {
        "names": {"kind": "RayCluster"},
        "versions": [
            {"name": "v1alpha1", "schema": {"openAPIV3Schema": {"type": "object"}}},
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "required": ["rayVersion", "scale"],
                                "properties": {
                                    "rayVersion": {"type": "string"},
                                    "scale": {"type": "integer", "default": 1},
                                    "port": {"x-kubernetes-int-or-string": True},
                                    "when": {"type": "string", "nullable": True},
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                },
                            },
                        },
                    }
                },
            },
        ],
    },
}


def test_conversion() -> None:
    import jsonschema

    spec = CRD["spec"]["versions"][1]["schema"]["openAPIV3Schema"]["properties"]["spec"]  # type: ignore[index]
    judge = jsonschema.Draft202012Validator(from_crd(spec))
    good = {"rayVersion": "1", "port": "http", "when": None, "free": {"x": 1}}
    assert judge.is_valid(good)
    assert judge.is_valid(good | {"port": 80, "scale": 2})
    for change in ({"extra": 1}, {"port": 1.5}, {"rayVersion": None}, {"scale": "2"}):
        assert not judge.is_valid(good | change), change
    assert not judge.is_valid({"scale": 1})


@pytest.mark.parametrize("name", ["kuberay_schema.json", "ray_up_schema.json"])
def test_the_schemas_are_valid_and_refer_to_what_is_there(name: str) -> None:
    import jsonschema

    for schema in load(name).values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert set(re.findall(r"#/\$defs/(\w+)", json.dumps(schema))) <= set(load(name))


def test_a_missing_field_is_judged_as_its_default() -> None:
    mode = {"const": "token", "default": None, "error": "is not token; write token"}
    schema = {"properties": {"options": {"default": {}, "properties": {"mode": mode}}}}
    for document in ({}, {"options": {}}, {"options": {"mode": "none"}}, {"options": {"mode": "token"}}):
        findings = Findings("f")
        validate(findings, schema, document, "spec")
        good = document == {"options": {"mode": "token"}}
        assert [str(p) for p in findings.problems] == (
            [] if good else ["f: spec.options.mode: is not token; write token"]
        )


def test_a_folder_of_definitions_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERAY_CRD_DIR", str(tmp_path))
    path = CLUSTERS / "kuberay/raycluster.yaml"
    assert "defines no ray.io/v1 RayCluster" in str(check(path).problems[0])
    (tmp_path / "ray.io_rayclusters.yaml").write_text(yaml.safe_dump(CRD))
    lines = [str(problem) for problem in check(path).problems]
    assert (
        f"{path}: RayCluster.spec.headGroupSpec: is not a known field; known are free, port, rayVersion, scale, when"
        in lines
    )
    monkeypatch.setenv("KUBERAY_CRD_DIR", str(tmp_path / "absent"))
    assert "KUBERAY_CRD_DIR" in str(check(path).problems[0])


@pytest.mark.skipif(
    not os.environ.get("KUBERAY_CRD_DIR"), reason="KUBERAY_CRD_DIR names no folder with KubeRay's CRD files"
)
@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_shipped_files_pass_kuberays_definitions(name: str, tmp_path: Path) -> None:
    assert check(CLUSTERS / "kuberay" / name).problems == []
    key = "spec.headGroupSpec.template.spec.containers[0].livenessProbe"
    if name == "raycluster.yaml":  # deeper than this project's own list of fields looks
        path = planted(f"kuberay/{name}", key, {"initialDelay": 1}, tmp_path)
        assert any("livenessProbe.initialDelay" in str(problem) for problem in check(path).problems)
