"""Rules for the pods of a Ray cluster on Kubernetes: resources, GPUs, mounts, spot nodes, versions."""

from __future__ import annotations

import re
from typing import Any

from engine.cluster.files import common
from engine.cluster.files.findings import Findings, at, join, listing, mapping

SPOT = re.compile(r"spot|preemptible", re.IGNORECASE)


def check_pod(findings: Findings, key: str, pod: Any, pin: str) -> None:
    """Note what is wrong with a pod's spec at `key`."""
    volumes = {str(at(volume, "name")) for volume in listing(at(pod, "volumes"))}
    for index, container in enumerate(listing(at(pod, "containers"))):
        where = join(f"{key}.containers", index)
        _resources(findings, f"{where}.resources", mapping(at(container, "resources")))
        image = at(container, "image")
        if image and not common.versions(findings, f"{where}.image", image, pin) and "@sha256:" not in str(image):
            fix = f"end the tag in ray-{pin}, or name it by @sha256:"
            findings.problem(f"{where}.image", f"{image} does not say its Ray", fix)
        for number, mount in enumerate(listing(at(container, "volumeMounts"))):
            if (name := str(at(mount, "name"))) not in volumes:
                place = f"{where}.volumeMounts[{number}].name"
                findings.problem(place, f"no volume is called {name}", "add it to volumes")
    if (labels := spot_labels(pod)) and not listing(at(pod, "tolerations")):
        what = f"is missing: spot nodes ({', '.join(labels)}) are tainted"
        findings.problem(f"{key}.tolerations", what, "tolerate their taint, or no pod starts")


def spot_labels(pod: Any) -> list[str]:
    """The labels by which a pod's node selector asks for spot nodes."""
    chosen = mapping(at(pod, "nodeSelector")).items()
    return [name for name, value in chosen if SPOT.search(f"{name if str(value).lower() == 'true' else ''} {value}")]


def _resources(findings: Findings, key: str, resources: dict[str, Any]) -> None:
    limits, requests = mapping(resources.get("limits")), mapping(resources.get("requests"))
    for part, values in (("limits", limits), ("requests", requests)):
        if missing := [name for name in ("cpu", "memory") if name not in values]:
            what = f"names no {' and no '.join(missing)}: Ray takes its CPUs and memory from here"
            findings.problem(f"{key}.{part}", what, "name both")
    for name in {*limits, *requests}:
        asked, limit = requests.get(name, limits.get(name)), limits.get(name, "missing")
        if name.endswith("/gpu") and str(asked) != str(limit):
            what = f"is {asked}, the limit is {limit}"
            findings.problem(f"{key}.requests.{name}", what, "make them equal: Kubernetes refuses the pod")
