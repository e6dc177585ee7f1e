"""The cluster files of the project hold what their pages promise, by the check and by independent sources."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cluster.files import check
from engine.cluster.files.common import pinned_ray
from engine.cluster.files.schema import load as schemas
from tests.support.clusterfiles import CLUSTERS, ROOT

YAMLS = sorted(CLUSTERS.rglob("*.yaml"))
CLOUDS = [path for path in YAMLS if path.parent == CLUSTERS]
KUBERAY = [path for path in YAMLS if path.parent.name == "kuberay"]
SCRIPTS = sorted(CLUSTERS.rglob("*.sh"))


def name(path: Path) -> str:
    return str(path.relative_to(CLUSTERS))


def load(path: Path) -> dict[str, Any]:
    return list(yaml.safe_load_all(path.read_text()))[-1]


def test_all_are_there() -> None:
    assert {name(p) for p in YAMLS} == {
        "aws.yaml",
        "gcp.yaml",
        "azure.yaml",
        "kuberay/raycluster.yaml",
        "kuberay/rayjob.yaml",
    }
    assert {name(p) for p in SCRIPTS} == {"local/slurm.sh", "local/workstations.sh"}


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_no_problems_and_no_advice(path: Path) -> None:
    findings = check(path)
    assert [str(problem) for problem in findings.problems] == []
    assert [str(advice) for advice in findings.advice] == []
    assert findings.kinds


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_ray_itself_accepts_them(path: Path) -> None:
    from ray.autoscaler._private.util import check_legacy_fields, prepare_config, validate_config

    prepared = prepare_config(load(path))
    validate_config(prepared)
    check_legacy_fields(prepared)


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_labels_are_valid_for_ray(path: Path) -> None:
    from ray._private.label_utils import validate_node_label_syntax, validate_node_labels

    for node_type in load(path)["available_node_types"].values():
        validate_node_labels(node_type["labels"])
        validate_node_label_syntax(node_type["labels"])


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_start_options_exist_in_ray(path: Path) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = load(path)
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        used = set(re.findall(r"--[a-z-]+", command))
        assert used <= known
        if "ray start" in command:
            assert "RAY_USAGE_STATS_ENABLED=0" in command
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_use_options_that_exist_and_never_stop_others(path: Path) -> None:
    from ray.scripts.scripts import start

    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "ray stop" not in code
    assert "symmetric-run" not in code
    assert not re.search(r"\b(pkill|killall)\b", code)
    known = {option for parameter in start.params for option in parameter.opts}
    ours = {"--overlap", "--nodes", "--ntasks", "--nodelist", "--exclude", "--ip-address", "--output", "--set"}
    ours |= {"--address", "--working-dir"}
    assert set(re.findall(r"--[a-z][a-z-]+", code)) <= known | ours
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_three_kinds_of_workers(path: Path) -> None:
    types = load(path)["available_node_types"]
    workers = {key: value for key, value in types.items() if key != "head"}
    assert {value["labels"]["mimeo/market"] for value in workers.values() if "GPU" in value["resources"]} == {
        "spot",
        "on-demand",
    }
    assert any("GPU" not in value["resources"] for value in workers.values())
    assert all(value["min_workers"] == 0 for value in workers.values())


def test_aws_fields_are_those_of_the_service() -> None:
    """botocore's own description of RunInstances, at every depth."""
    session = pytest.importorskip("botocore.session").get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape

    def descend(value: Any, shape: Any, where: str) -> None:
        if shape.type_name == "structure":
            for key, item in value.items():
                assert key in shape.members, f"{where}.{key}"
                descend(item, shape.members[key], f"{where}.{key}")
        elif shape.type_name == "list":
            for item in value:
                descend(item, shape.member, where)

    for key, node_type in load(CLUSTERS / "aws.yaml")["available_node_types"].items():
        config = dict(node_type["node_config"])
        config["SubnetId"] = config.pop("SubnetIds")[0]  # Ray tries the subnets in turn
        descend(config, shape, key)


def test_the_list_of_aws_fields_is_that_of_the_service() -> None:
    known = set(schemas("ray_up_schema.json")["aws_node"]["properties"])
    session = pytest.importorskip("botocore.session").get_session()
    members = set(session.get_service_model("ec2").operation_model("RunInstances").input_shape.members)
    assert members - known == {"MinCount", "MaxCount", "SubnetId"}  # Ray sets these
    assert known - members == {"SubnetIds"}  # Ray's own


def test_the_list_of_azure_parameters_is_that_of_rays_template() -> None:
    import ray.autoscaler._private as private

    template = json.loads((Path(private.__file__).parent / "_azure/azure-vm-template.json").read_text())
    known = set(schemas("ray_up_schema.json")["azure_parameters"]["properties"])
    set_by_ray = {"vmName", "vmTags", "vmCount", "msi", "nsg", "subnet"}
    assert set(template["parameters"]) - set_by_ray == known - {"availability_zone"}


def test_image_and_setup_have_the_pinned_ray() -> None:
    pin = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert pin.group(1) == pinned_ray()
    dockerfile = (CLUSTERS / "kuberay/Dockerfile").read_text()
    assert set(re.findall(r"ray(?:\[default\])?(?::|==|-)(\d+\.\d+\.\d+)", dockerfile)) == {pin.group(1)}


def test_constraints_pin_what_the_setup_installs_first() -> None:
    names = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {"uv", "ray", "torch", "boto3"} <= names


@pytest.mark.parametrize("path", KUBERAY, ids=name)
def test_kuberay_entry(path: Path) -> None:
    document = load(path)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    markets = {group["labels"]["mimeo/market"] for group in cluster["workerGroupSpecs"]}
    assert markets == {"spot", "on-demand"}
    assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        container = group["template"]["spec"]["containers"][0]
        env = {item["name"]: item["value"] for item in container["env"]}
        assert env["MIMEO_CACHE"] == "/cache"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/cache"}


def test_the_job_runs_a_verb_that_exists() -> None:
    from pipelines.cli import VERBS

    entrypoint = load(CLUSTERS / "kuberay/rayjob.yaml")["spec"]["entrypoint"]
    found = re.fullmatch(r"python -m (pipelines\.\w+) \S+ --output s3://\S+( --set \S+)*", entrypoint)
    assert found is not None
    assert found.group(1) in {verb.__name__ for verb in VERBS}
