"""Cluster files checked offline, before a machine is paid for: `ray up` files and KubeRay's RayCluster and RayJob."""

from __future__ import annotations

from pathlib import Path

from engine.cluster.files.cluster_yaml import read
from engine.cluster.files.findings import Findings
from engine.errors import ConfigError

__all__ = ["Findings", "check"]


def check(path: str | Path) -> Findings:
    """Check one cluster file; needs no network, cloud package or credentials.

    Every problem and every piece of advice is a ConfigError whose `where` is "FILE: DOTTED.KEY". A file that cannot be
    read is one problem. When the environment's KUBERAY_CRD_DIR names a folder with KubeRay's resource definitions,
    KubeRay files are checked against those too.
    """
    findings = Findings(str(path))
    try:
        documents = read(Path(path))
        first = documents[0]
        if any(isinstance(d, dict) and ("apiVersion" in d or "kind" in d) for d in documents):
            from engine.cluster.files import kuberay

            kuberay.check(findings, documents)
        elif isinstance(first, dict) and len(documents) == 1:
            from engine.cluster.files import ray_up

            ray_up.check(findings, first)
        else:
            what = "is not a mapping of keys to values" if len(documents) == 1 else "holds several documents"
            findings.problem("", what, "start from a file in clusters/")
    except ConfigError as error:
        findings.problems.append(error)
    return findings
