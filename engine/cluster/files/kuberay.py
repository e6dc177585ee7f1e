"""The check of KubeRay files: kuberay_schema.json, and the rules that no schema can say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from engine.cluster.files import common, pods
from engine.cluster.files.findings import Findings, at, join, listing, mapping, nearest, whole
from engine.cluster.files.schema import load, load_crd, validate

KINDS = ("RayCluster", "RayJob")


def check(findings: Findings, documents: list[Any]) -> None:
    """Note everything that is wrong with the Kubernetes objects of one file."""
    for document in documents:
        kind = str(mapping(document).get("kind") or "")
        if kind in KINDS:
            findings.kinds.append(kind)
            _ours(findings, kind, document)
        elif kind and "ray.io/" in str(mapping(document).get("apiVersion")):
            findings.problem(f"{kind}.kind", f"{kind} is not checked here", nearest(kind, KINDS))
        else:
            validate(findings, load("kuberay_schema.json")["other"], document, kind)
            if kind == "Secret" and (document.get("data") or document.get("stringData")):
                findings.problem("Secret.data", "holds a secret", common.SECRET_FIX)
        common.secrets(findings, document, kind)
        common.open_addresses(findings, document, kind)
    if not findings.kinds:
        findings.problem("kind", "the file holds no RayCluster and no RayJob", "start from a file in clusters/kuberay")


def _ours(findings: Findings, kind: str, document: dict[str, Any]) -> None:
    validate(findings, load("kuberay_schema.json")[kind], document, kind)
    if folder := os.environ.get("KUBERAY_CRD_DIR"):
        if schema := load_crd(Path(folder), kind):
            validate(findings, schema, document, kind)
        else:
            what = f"KUBERAY_CRD_DIR ({folder}) defines no ray.io/v1 {kind}"
            findings.problem(kind, what, "fetch KubeRay's CRD files")
    pin, key, spec = common.pinned_ray(), f"{kind}.spec", mapping(document.get("spec"))
    if kind == "RayJob":
        _environment(findings, f"{key}.runtimeEnvYAML", spec.get("runtimeEnvYAML"))
        pods.check_pod(findings, f"{key}.submitterPodTemplate.spec", at(spec, "submitterPodTemplate", "spec"), pin)
        if "rayClusterSpec" not in spec:
            return
        key, spec = f"{key}.rayClusterSpec", mapping(spec["rayClusterSpec"])
    if (version := spec.get("rayVersion")) != pin:
        what = "is missing" if version is None else f"is {version}, the project's is {pin}"
        findings.problem(f"{key}.rayVersion", what, f'write "{pin}"')
    _head(findings, f"{key}.headGroupSpec.template.spec", at(spec, "headGroupSpec", "template", "spec"), pin)
    _groups(findings, f"{key}.workerGroupSpecs", listing(spec.get("workerGroupSpecs")), pin)


def _head(findings: Findings, key: str, pod: Any, pin: str) -> None:
    pods.check_pod(findings, key, pod, pin)
    limits = [mapping(at(container, "resources", "limits")) for container in listing(at(pod, "containers"))]
    if any(name.endswith("/gpu") for names in limits for name in names):
        findings.problem(f"{key}.containers", "the head asks for GPUs and takes no work", "remove them")
    if pods.spot_labels(pod):
        findings.problem(f"{key}.nodeSelector", "puts the head on spot nodes", "a lost head ends the run")


def _groups(findings: Findings, key: str, groups: list[Any], pin: str) -> None:
    names: set[str] = set()
    for index, group in enumerate(map(mapping, groups)):
        where, name, pod = join(key, index), str(group.get("groupName")), at(group, "template", "spec")
        if name in names:
            findings.problem(f"{where}.groupName", f"{name} appears twice", "give each group its own name")
        names.add(name)
        low, now, high = (whole(group.get(name)) for name in ("minReplicas", "replicas", "maxReplicas"))
        if high is not None and low is not None and low > high:
            findings.problem(f"{where}.minReplicas", f"is {low}, maxReplicas is {high}", "lower it")
        elif high is not None and now is not None and not (low or 0) <= now <= high:
            findings.problem(f"{where}.replicas", f"is {now}, not between {low or 0} and {high}", "correct it")
        pods.check_pod(findings, f"{where}.template.spec", pod, pin)
    spots = [bool(pods.spot_labels(at(group, "template", "spec"))) for group in groups]
    common.market(findings, key, "group", {join(key, i): (group, spots[i]) for i, group in enumerate(groups)})


def _environment(findings: Findings, key: str, text: Any) -> None:
    if not isinstance(text, str):
        return
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if value is not None and not isinstance(value, dict):
        findings.problem(key, "is no YAML mapping", "correct it")
    common.secrets(findings, value, key)
