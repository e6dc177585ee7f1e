"""Rules for the pods of a Ray cluster on Kubernetes: resources, GPUs, mounts, spot nodes, ports, versions."""

from __future__ import annotations

import re
from typing import Any

from engine.cluster.files import common
from engine.cluster.files.findings import Findings, at, join, listing, mapping

SPOT = re.compile(r"spot|preemptible", re.IGNORECASE)


def check_pod(findings: Findings, key: str, spec: Any, pin: str) -> None:
    """Note what is wrong with a pod's spec at `key`."""
    pod = mapping(spec)
    containers = listing(pod.get("containers"))
    volumes = {str(mapping(volume).get("name")) for volume in listing(pod.get("volumes"))}
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            findings.problem(f"{key}.{name}", "opens the host to the pod", "remove it")
    for index, container in enumerate(containers):
        _container(findings, join(f"{key}.containers", index), mapping(container), volumes, pin)
    selector = mapping(pod.get("nodeSelector"))
    if wants_spot(pod) and not listing(pod.get("tolerations")):
        names = ", ".join(name for name, value in selector.items() if _spot(name, value))
        findings.problem(
            f"{key}.tolerations",
            f"is missing: spot nodes ({names}) are tainted",
            "tolerate their taint, or no pod starts",
        )


def wants_spot(spec: Any) -> bool:
    """Whether a pod asks for spot nodes by its node selector."""
    return any(_spot(name, value) for name, value in mapping(at(spec, "nodeSelector")).items())


def _spot(name: str, value: Any) -> bool:
    if SPOT.search(str(value)):
        return True
    return bool(SPOT.search(name)) and str(value).lower() == "true"


def gpus(container: Any) -> dict[str, Any]:
    """The GPU resources that a container limits."""
    return {name: n for name, n in mapping(at(container, "resources", "limits")).items() if name.endswith("/gpu")}


def _container(findings: Findings, key: str, container: dict[str, Any], volumes: set[str], pin: str) -> None:
    limits, requests = (mapping(at(container, "resources", part)) for part in ("limits", "requests"))
    for part, values in (("limits", limits), ("requests", requests)):
        missing = [name for name in ("cpu", "memory") if name not in values]
        if missing:
            findings.problem(
                f"{key}.resources.{part}",
                f"names no {' and no '.join(missing)}: Ray takes its CPUs and memory from here",
                "name both",
            )
    for name in {*limits, *requests}:
        if name.endswith("/gpu") and str(limits.get(name)) != str(requests.get(name, limits.get(name))):
            findings.problem(
                f"{key}.resources.requests.{name}",
                f"is {requests.get(name)}, the limit is {limits.get(name, 'missing')}",
                "make them equal: Kubernetes refuses the pod",
            )
    image = container.get("image")
    if not image:
        findings.problem(f"{key}.image", "is missing", "name an image with the project in it")
    elif not common.versions(findings, f"{key}.image", image, pin) and "@sha256:" not in str(image):
        findings.problem(
            f"{key}.image", f"{image} does not say its Ray", f"end the tag in ray-{pin}, or name it by @sha256:"
        )
    for index, mount in enumerate(listing(container.get("volumeMounts"))):
        volume = str(mapping(mount).get("name"))
        if volume not in volumes:
            findings.problem(f"{key}.volumeMounts[{index}].name", f"no volume is called {volume}", "add it to volumes")
    for index, port in enumerate(listing(container.get("ports"))):
        if mapping(port).get("hostPort"):
            findings.problem(f"{key}.ports[{index}].hostPort", "opens the port on the host", "remove it")
