"""The check of KubeRay files: known fields at every depth, and the rules that the operator does not enforce."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from engine.cluster.files import cluster_fields, common, pods
from engine.cluster.files.findings import Findings, at, join, listing, mapping, nearest, whole
from engine.cluster.files.schema import load_crd, validate

KINDS = ("RayCluster", "RayJob")
OPEN_SERVICES = ("LoadBalancer", "NodePort")
MAX_RETRIES = 10


def check(findings: Findings, documents: list[Any]) -> None:
    """Note everything that is wrong with the Kubernetes objects of one file."""
    found = 0
    for document in documents:
        kind = str(mapping(document).get("kind"))
        if kind in KINDS:
            found += 1
            findings.kinds.append(kind)
            _ours(findings, kind, document)
        elif "ray.io/" in str(mapping(document).get("apiVersion")):
            findings.problem(f"{kind}.kind", f"{kind} is not checked here", nearest(kind, KINDS))
        else:
            _other(findings, kind, mapping(document))
        common.secrets(findings, document, kind)
        common.open_addresses(findings, document, kind)
    if not found:
        findings.problem("kind", "the file holds no RayCluster and no RayJob", "start from a file in clusters/kuberay")


def _ours(findings: Findings, kind: str, document: Any) -> None:
    validate(findings, cluster_fields.resource(kind), document, kind)
    if folder := os.environ.get("KUBERAY_CRD_DIR"):
        schema = load_crd(Path(folder), kind)
        if schema is None:
            findings.problem(
                kind, f"KUBERAY_CRD_DIR ({folder}) defines no ray.io/v1 {kind}", "fetch KubeRay's CRD files"
            )
        else:
            validate(findings, schema, document, kind)
    if not at(document, "metadata", "name") and not at(document, "metadata", "generateName"):
        findings.problem(f"{kind}.metadata.name", "is missing", "give it a name")
    spec = mapping(at(document, "spec"))
    if kind == "RayCluster":
        _cluster(findings, "RayCluster.spec", spec)
        return
    _job(findings, "RayJob.spec", spec)
    if "rayClusterSpec" in spec:
        _cluster(findings, "RayJob.spec.rayClusterSpec", mapping(spec["rayClusterSpec"]))


def _other(findings: Findings, kind: str, document: dict[str, Any]) -> None:
    """Objects beside ours: no secrets, nothing that opens a port."""
    if not document.get("apiVersion") or not document.get("kind"):
        findings.problem("kind", "a document names no apiVersion and kind", "add them")
    if kind == "Secret" and (document.get("data") or document.get("stringData")):
        findings.problem("Secret.data", "holds a secret", common.SECRET_FIX)
    if kind == "Service" and at(document, "spec", "type") in OPEN_SERVICES:
        findings.problem("Service.spec.type", f"{at(document, 'spec', 'type')} opens the port", "use ClusterIP")
    if kind in ("Ingress", "Route", "HTTPRoute", "Gateway"):
        findings.problem(f"{kind}.kind", "opens the cluster to others", "use kubectl port-forward")


def _cluster(findings: Findings, key: str, spec: dict[str, Any]) -> None:
    pin = common.pinned_ray()
    if (version := spec.get("rayVersion")) != pin:
        what = "is missing" if version is None else f"is {version}, the project's is {pin}"
        findings.problem(f"{key}.rayVersion", what, f'write "{pin}"')
    if at(spec, "authOptions", "mode") != "token":
        findings.problem(
            f"{key}.authOptions.mode",
            "is not token: whoever reaches a port can run code",
            "write authOptions: {mode: token}",
        )
    _autoscaler(findings, key, spec)
    _redis(findings, key, spec)
    _head(findings, f"{key}.headGroupSpec", mapping(spec.get("headGroupSpec")), pin)
    names: set[str] = set()
    spot = False
    groups = listing(spec.get("workerGroupSpecs"))
    if not groups:
        findings.problem(f"{key}.workerGroupSpecs", "is missing or empty", "the head takes no work: add a group")
    for index, value in enumerate(groups):
        group, where = mapping(value), join(f"{key}.workerGroupSpecs", index)
        name = str(group.get("groupName"))
        if name in names:
            findings.problem(f"{where}.groupName", f"{name} appears twice", "give each group its own name")
        names.add(name)
        _replicas(findings, where, group)
        pods.check_pod(findings, f"{where}.template.spec", at(group, "template", "spec"), pin)
        asked = pods.wants_spot(at(group, "template", "spec"))
        spot = spot or asked
        label = at(group, "labels", "mimeo/market")
        if label is not None and (label == "spot") != asked:
            what = f"says {label}, the nodes are {'spot' if asked else 'on demand'}"
            findings.problem(f"{where}.labels.mimeo/market", what, "make them agree")
    if groups and not spot:
        findings.advise(
            f"{key}.workerGroupSpecs", "no group uses spot nodes", "they cost a fraction, and a run survives their loss"
        )


def _autoscaler(findings: Findings, key: str, spec: dict[str, Any]) -> None:
    if spec.get("enableInTreeAutoscaling") is not True:
        findings.problem(
            f"{key}.enableInTreeAutoscaling", "is not true: idle nodes are never given back", "set it to true"
        )
    if at(spec, "autoscalerOptions", "version") != "v2":
        findings.problem(
            f"{key}.autoscalerOptions.version", "is not v2: labels and group timeouts need it", "write version: v2"
        )


def _redis(findings: Findings, key: str, spec: dict[str, Any]) -> None:
    options = mapping(spec.get("gcsFaultToleranceOptions"))
    if not options:
        return
    where = f"{key}.gcsFaultToleranceOptions"
    for name in ("redisPassword", "redisUsername"):
        if at(options, name, "value"):
            findings.problem(f"{where}.{name}.value", "holds a secret in plain text", "use valueFrom.secretKeyRef")
    if options.get("backend") == "rocksdb":
        return
    if not options.get("redisAddress"):
        findings.problem(f"{where}.redisAddress", "is missing", "name the service, as in mimeo-redis:6379")
    if not at(options, "redisPassword", "valueFrom", "secretKeyRef"):
        findings.problem(f"{where}.redisPassword", "comes from no Secret", "use valueFrom.secretKeyRef")


def _head(findings: Findings, key: str, head: dict[str, Any], pin: str) -> None:
    cpus = at(head, "resources", "CPU") or at(head, "rayStartParams", "num-cpus")
    if str(cpus) != "0":
        findings.problem(
            f"{key}.rayStartParams.num-cpus", 'is not "0": the head would take work and could be starved', 'write "0"'
        )
    for where, service in (
        ("serviceType", head.get("serviceType")),
        ("headService.spec.type", at(head, "headService", "spec", "type")),
    ):
        if service in OPEN_SERVICES:
            findings.problem(
                f"{key}.{where}", f"{service} opens the head's ports", "use ClusterIP and kubectl port-forward"
            )
    if head.get("enableIngress"):
        findings.problem(f"{key}.enableIngress", "opens the dashboard, which runs code", "use kubectl port-forward")
    password = at(head, "rayStartParams", "redis-password")
    if isinstance(password, str) and not password.startswith("$"):
        findings.problem(
            f"{key}.rayStartParams.redis-password", "holds a secret in plain text", "use gcsFaultToleranceOptions"
        )
    spec = at(head, "template", "spec")
    pods.check_pod(findings, f"{key}.template.spec", spec, pin)
    if any(pods.gpus(container) for container in listing(at(spec, "containers"))):
        findings.problem(f"{key}.template.spec.containers", "the head asks for GPUs and takes no work", "remove them")
    if pods.wants_spot(spec):
        findings.problem(f"{key}.template.spec.nodeSelector", "puts the head on spot nodes", "a lost head ends the run")


def _replicas(findings: Findings, key: str, group: dict[str, Any]) -> None:
    low, now, high = (whole(group.get(name)) for name in ("minReplicas", "replicas", "maxReplicas"))
    if high is None:
        findings.problem(f"{key}.maxReplicas", "is missing: there may be two thousand million", "say how many")
        return
    if low is not None and low > high:
        findings.problem(f"{key}.minReplicas", f"is {low}, maxReplicas is {high}", "lower it")
    elif now is not None and not (low or 0) <= now <= high:
        findings.problem(f"{key}.replicas", f"is {now}, not between {low or 0} and {high}", "correct it")


def _job(findings: Findings, key: str, spec: dict[str, Any]) -> None:
    selector = spec.get("clusterSelector")
    if not spec.get("rayClusterSpec") and not selector:
        findings.problem(f"{key}.rayClusterSpec", "is missing", "describe the cluster")
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        findings.problem(f"{key}.entrypoint", "is missing", "write python -m pipelines.generate RECIPE --output URL")
    if not selector and spec.get("shutdownAfterJobFinishes") is not True and not spec.get("deletionStrategy"):
        findings.problem(
            f"{key}.shutdownAfterJobFinishes",
            "is not true: the cluster would stay, and cost, after the run",
            "set it to true",
        )
    if spec.get("ttlSecondsAfterFinished") and spec.get("shutdownAfterJobFinishes") is not True:
        findings.problem(f"{key}.ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes: true", "set it")
    if (whole(spec.get("backoffLimit")) or 0) > MAX_RETRIES:
        findings.problem(f"{key}.backoffLimit", f"is above {MAX_RETRIES}: each retry makes a new cluster", "lower it")
    environment = spec.get("runtimeEnvYAML")
    if isinstance(environment, str):
        try:
            value = yaml.safe_load(environment)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = environment
        if value is not None and not isinstance(value, dict):
            findings.problem(f"{key}.runtimeEnvYAML", "is no YAML mapping", "correct it")
        else:
            common.secrets(findings, value, f"{key}.runtimeEnvYAML")
    template = at(spec, "submitterPodTemplate", "spec")
    if template is not None:
        pods.check_pod(findings, f"{key}.submitterPodTemplate.spec", template, common.pinned_ray())
