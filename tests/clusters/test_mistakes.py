"""Each planted mistake in a shipped file is found, at its dotted key, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.cluster.files import check
from tests.support.clusterfiles import REMOVE, planted

TYPES = "available_node_types"
SPOT = f"{TYPES}.gpu-spot"
NODE = f"{SPOT}.node_config"
WORLD = [{"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]


def replaced(old: str, new: str) -> Any:
    return lambda text: text.replace(old, new)


# (file, key to change, value, dotted key of the finding, words of the finding)
RAY_UP: list[tuple[str, str, Any, str, str]] = [
    # fields that nobody knows, at every depth
    ("aws.yaml", "max_worker", 3, "max_worker", "did you mean max_workers?"),
    ("aws.yaml", "provider.regoin", "x", "provider.regoin", "did you mean region?"),
    ("aws.yaml", f"{SPOT}.min_worker", 1, f"{SPOT}.min_worker", "did you mean min_workers?"),
    ("aws.yaml", f"{NODE}.InstanceTyp", "g6", f"{NODE}.InstanceTyp", "did you mean InstanceType?"),
    ("gcp.yaml", f"{NODE}.machinetype", "g2", f"{NODE}.machinetype", "did you mean machineType?"),
    ("azure.yaml", f"{NODE}.vmSize", "x", f"{NODE}.vmSize", "azure_arm_parameters"),
    (
        "azure.yaml",
        f"{NODE}.azure_arm_parameters.vmsize",
        "x",
        f"{NODE}.azure_arm_parameters.vmsize",
        "did you mean vmSize?",
    ),
    ("gcp.yaml", "auth.ssh_usr", "x", "auth.ssh_usr", "did you mean ssh_user?"),
    # wrong types
    ("aws.yaml", "max_workers", "many", "max_workers", "write a whole number"),
    ("aws.yaml", f"{SPOT}.labels.mimeo/market", 1, f"{SPOT}.labels.mimeo/market", "write text"),
    ("aws.yaml", "setup_commands", "pip install ray==2.60.0", "setup_commands", "write a list"),
    # the place and the cloud
    ("aws.yaml", "provider.type", "awz", "provider.type", "did you mean aws?"),
    ("aws.yaml", "provider", REMOVE, "provider", "is missing"),
    ("aws.yaml", "cluster_name", REMOVE, "cluster_name", "is missing"),
    ("aws.yaml", "provider.region", REMOVE, "provider.region", "is missing"),
    ("gcp.yaml", "provider.availability_zone", REMOVE, "provider.availability_zone", "is missing"),
    ("gcp.yaml", "provider.project_id", None, "provider.project_id", "is missing"),
    ("azure.yaml", "provider.resource_group", REMOVE, "provider.resource_group", "is missing"),
    # the head
    ("aws.yaml", "head_node_type", REMOVE, "head_node_type", "is missing"),
    ("aws.yaml", "head_node_type", "haed", "head_node_type", "must be one of"),
    ("aws.yaml", f"{TYPES}.head.resources.CPU", 4, f"{TYPES}.head.resources.CPU", "take work"),
    ("aws.yaml", f"{TYPES}.head.resources.CPU", REMOVE, f"{TYPES}.head.resources.CPU", "take work"),
    ("aws.yaml", f"{TYPES}.head.resources.GPU", 1, f"{TYPES}.head.resources.GPU", "take work"),
    ("aws.yaml", f"{TYPES}.head.max_workers", 2, f"{TYPES}.head.max_workers", "started as a worker"),
    # limits
    ("aws.yaml", f"{SPOT}.min_workers", 13, f"{SPOT}.min_workers", "is 13, max_workers is 12"),
    ("aws.yaml", f"{SPOT}.max_workers", 17, f"{SPOT}.max_workers", "is 17, the whole cluster's max_workers is 16"),
    ("aws.yaml", f"{SPOT}.max_workers", REMOVE, f"{SPOT}.max_workers", "is missing"),
    ("aws.yaml", "max_workers", REMOVE, "max_workers", "is missing"),
    # versions
    ("aws.yaml", "setup_commands[4]", replaced("2.60.0", "2.59.1"), "setup_commands[4]", "names Ray 2.59.1"),
    (
        "aws.yaml",
        "setup_commands[5]",
        "pip install -U ray[default]==3.0.0.dev0",
        "setup_commands[5]",
        "names Ray 3.0.0",
    ),
    (
        "gcp.yaml",
        "docker",
        {"image": "rayproject/ray:latest", "container_name": "r"},
        "docker.image",
        "names Ray latest",
    ),
    (
        "gcp.yaml",
        "docker",
        {"image": "rayproject/ray:2.54.0-py311-gpu", "container_name": "r"},
        "docker.image",
        "2.54.0",
    ),
    ("aws.yaml", "setup_commands", ["chmod 600 ~/.ray/auth_token"], "setup_commands", "no fixed version"),
    # the token and the dashboard
    (
        "aws.yaml",
        "worker_start_ray_commands[1]",
        replaced("RAY_AUTH_MODE=token", ""),
        "worker_start_ray_commands[1]",
        "RAY_AUTH_MODE",
    ),
    (
        "gcp.yaml",
        "head_start_ray_commands[1]",
        replaced("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "head_start_ray_commands[1]",
        "RAY_AUTH_MODE",
    ),
    ("aws.yaml", 'file_mounts."~/.ray/auth_token"', REMOVE, "file_mounts.~/.ray/auth_token", "is missing"),
    ("aws.yaml", "setup_commands[0]", "mkdir -p ~/.ray", "file_mounts.~/.ray/auth_token", "chmod 600"),
    (
        "aws.yaml",
        "head_start_ray_commands[1]",
        replaced("127.0.0.1", "0.0.0.0"),
        "head_start_ray_commands[1]",
        "opens the dashboard",
    ),
    (
        "aws.yaml",
        "head_start_ray_commands[1]",
        replaced("--dashboard-host=127.0.0.1", "--dashboard-host '::'"),
        "head_start_ray_commands[1]",
        "opens the dashboard",
    ),
    ("aws.yaml", "head_start_ray_commands", REMOVE, "head_start_ray_commands", "take no token"),
    ("aws.yaml", "worker_start_ray_commands", ["~/venv/bin/ray stop"], "worker_start_ray_commands", "starts no Ray"),
    (
        "aws.yaml",
        "head_start_ray_commands[1]",
        replaced("--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        "head_start_ray_commands[1]",
        "no autoscaler",
    ),
    # open ports and public addresses
    (
        "aws.yaml",
        "provider.security_group",
        {"GroupName": "g", "IpPermissions": WORLD},
        "provider.security_group.IpPermissions[0].IpRanges[0].CidrIp",
        "opens ports",
    ),
    ("aws.yaml", f"{NODE}.SecurityGroupIds", REMOVE, f"{NODE}.SecurityGroupIds", "port 22"),
    ("aws.yaml", "provider.use_internal_ips", False, "provider.use_internal_ips", "public addresses"),
    ("azure.yaml", "provider.use_internal_ips", REMOVE, "provider.use_internal_ips", "public addresses"),
    ("azure.yaml", "provider.use_external_head_ip", True, "provider.use_external_head_ip", "public address"),
    (
        "azure.yaml",
        f"{NODE}.azure_arm_parameters.provisionPublicIp",
        True,
        f"{NODE}.azure_arm_parameters.provisionPublicIp",
        "public address",
    ),
    ("gcp.yaml", f"{NODE}.networkInterfaces", REMOVE, f"{NODE}.networkInterfaces", "public address"),
    (
        "gcp.yaml",
        f"{NODE}.networkInterfaces[0].accessConfigs",
        [{"type": "ONE_TO_ONE_NAT"}],
        f"{NODE}.networkInterfaces[0].accessConfigs",
        "public address",
    ),
    (
        "azure.yaml",
        "metadata",
        {"securityRules": [{"sourceAddressPrefix": "*"}]},
        "metadata.securityRules[0].sourceAddressPrefix",
        "opens ports",
    ),
    (
        "gcp.yaml",
        "metadata",
        {"firewall": {"sourceRanges": ["0.0.0.0/0"]}},
        "metadata.firewall.sourceRanges[0]",
        "opens ports",
    ),
    # keys
    (
        "aws.yaml",
        "provider.aws_credentials",
        {"aws_access_key_id": "AKIA" + "A1" * 8},
        "provider.aws_credentials",
        "credentials",
    ),
    (
        "aws.yaml",
        "setup_commands[5]",
        "export AWS_SECRET_ACCESS_KEY=abcdefgh12345",
        "setup_commands[5]",
        "AWS_SECRET_ACCESS_KEY",
    ),
    ("aws.yaml", "setup_commands[5]", "echo AKIA" + "B2" * 8, "setup_commands[5]", "AWS access key"),
    (
        "azure.yaml",
        "setup_commands[5]",
        "echo 'AccountName=a;AccountKey=b=='",
        "setup_commands[5]",
        "Azure storage key",
    ),
    (
        "aws.yaml",
        "head_start_ray_commands[1]",
        replaced("RAY_USAGE", "RAY_AUTH_TOKEN=" + "0a1b" * 16 + " RAY_USAGE"),
        "head_start_ray_commands[1]",
        "RAY_AUTH_TOKEN",
    ),
    ("gcp.yaml", "setup_commands[5]", "echo " + "9f8e7d6c" * 8 + " > token", "setup_commands[5]", "long token"),
    (
        "gcp.yaml",
        "auth.ssh_private_key",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nx",
        "auth.ssh_private_key",
        "private key",
    ),
    # roles, spot nodes, GPUs
    ("aws.yaml", f"{NODE}.IamInstanceProfile", REMOVE, f"{NODE}.IamInstanceProfile", "name a role"),
    ("gcp.yaml", f"{NODE}.serviceAccounts", [], f"{NODE}.serviceAccounts", "service account"),
    ("aws.yaml", f"{NODE}.InstanceMarketOptions", REMOVE, f"{SPOT}.labels.mimeo/market", "nodes are on demand"),
    (
        "gcp.yaml",
        f"{TYPES}.gpu-on-demand.node_config.scheduling",
        REMOVE,
        f"{TYPES}.gpu-on-demand.node_config.scheduling.onHostMaintenance",
        "TERMINATE",
    ),
]

HEAD = "spec.headGroupSpec"
GROUP = "spec.workerGroupSpecs[0]"
POD = f"{GROUP}.template.spec"
BOX = f"{POD}.containers[0]"
GPU = '"nvidia.com/gpu"'
KUBERAY: list[tuple[str, str, Any, str, str]] = [
    # fields that nobody knows, at every depth
    ("raycluster.yaml", "spce", {}, "spce", "is not a known field"),
    ("raycluster.yaml", "spec.rayversion", "2.60.0", "spec.rayversion", "did you mean rayVersion?"),
    ("raycluster.yaml", f"{HEAD}.rayStartParam", {}, f"{HEAD}.rayStartParam", "did you mean rayStartParams?"),
    ("raycluster.yaml", f"{GROUP}.maxReplica", 1, f"{GROUP}.maxReplica", "did you mean maxReplicas?"),
    ("raycluster.yaml", f"{GROUP}.template.sepc", {}, f"{GROUP}.template.sepc", "did you mean spec?"),
    ("raycluster.yaml", f"{POD}.toleration", [], f"{POD}.toleration", "did you mean tolerations?"),
    ("raycluster.yaml", f"{BOX}.resource", {}, f"{BOX}.resource", "did you mean resources?"),
    ("raycluster.yaml", f"{BOX}.env[0].vaule", "x", f"{BOX}.env[0].vaule", "did you mean value?"),
    (
        "raycluster.yaml",
        "spec.autoscalerOptions.idleTimeoutSecond",
        1,
        "spec.autoscalerOptions.idleTimeoutSecond",
        "did you mean",
    ),
    ("raycluster.yaml", "apiVersion", "ray.io/v1alpha1", "apiVersion", "ray.io/v1"),
    # wrong types
    ("raycluster.yaml", f"{HEAD}.rayStartParams.num-cpus", 0, f"{HEAD}.rayStartParams.num-cpus", "write text"),
    ("raycluster.yaml", f"{GROUP}.replicas", "2", f"{GROUP}.replicas", "write a whole number"),
    ("raycluster.yaml", f"{BOX}.env[0].value", 0, f"{BOX}.env[0].value", "write text"),
    (
        "raycluster.yaml",
        "spec.autoscalerOptions.upscalingMode",
        "Fast",
        "spec.autoscalerOptions.upscalingMode",
        "Aggressive",
    ),
    ("raycluster.yaml", f"{POD}.tolerations[0].operator", "Exist", f"{POD}.tolerations[0].operator", "Exists"),
    # what must be there
    ("raycluster.yaml", HEAD, REMOVE, HEAD, "is missing"),
    ("raycluster.yaml", "metadata.name", REMOVE, "metadata.name", "is missing"),
    ("raycluster.yaml", "spec.workerGroupSpecs", [], "spec.workerGroupSpecs", "add a group"),
    ("raycluster.yaml", f"{GROUP}.groupName", REMOVE, f"{GROUP}.groupName", "is missing"),
    (
        "raycluster.yaml",
        "spec.workerGroupSpecs[1].groupName",
        "gpu-spot",
        "spec.workerGroupSpecs[1].groupName",
        "appears twice",
    ),
    ("raycluster.yaml", f"{POD}.containers", [], f"{POD}.containers", "is empty"),
    ("raycluster.yaml", f"{BOX}.resources", REMOVE, f"{BOX}.resources.limits", "no cpu and no memory"),
    ("raycluster.yaml", f"{BOX}.resources.limits.memory", REMOVE, f"{BOX}.resources.limits", "no memory"),
    # replicas
    ("raycluster.yaml", f"{GROUP}.minReplicas", 13, f"{GROUP}.minReplicas", "is 13, maxReplicas is 12"),
    ("raycluster.yaml", f"{GROUP}.replicas", 20, f"{GROUP}.replicas", "not between 0 and 12"),
    ("raycluster.yaml", f"{GROUP}.maxReplicas", REMOVE, f"{GROUP}.maxReplicas", "is missing"),
    ("raycluster.yaml", f"{GROUP}.minReplicas", -1, f"{GROUP}.minReplicas", "minimum"),
    # authentication and open ports
    ("raycluster.yaml", "spec.authOptions", REMOVE, "spec.authOptions.mode", "is not token"),
    ("raycluster.yaml", "spec.authOptions.mode", "disabled", "spec.authOptions.mode", "is not token"),
    ("raycluster.yaml", f"{HEAD}.serviceType", "LoadBalancer", f"{HEAD}.serviceType", "opens the head's ports"),
    ("raycluster.yaml", f"{HEAD}.serviceType", "NodePort", f"{HEAD}.serviceType", "opens the head's ports"),
    ("raycluster.yaml", f"{HEAD}.headService.spec.type", "LoadBalancer", f"{HEAD}.headService.spec.type", "opens"),
    ("raycluster.yaml", f"{HEAD}.enableIngress", True, f"{HEAD}.enableIngress", "opens the dashboard"),
    ("raycluster.yaml", f"{POD}.hostNetwork", True, f"{POD}.hostNetwork", "opens the host"),
    (
        "raycluster.yaml",
        f"{HEAD}.template.spec.containers[0].ports[1].hostPort",
        8265,
        f"{HEAD}.template.spec.containers[0].ports[1].hostPort",
        "on the host",
    ),
    # GPUs, spot nodes, mounts, the head
    (
        "raycluster.yaml",
        f"{BOX}.resources.requests.{GPU}",
        "2",
        f"{BOX}.resources.requests.nvidia.com/gpu",
        "the limit is 1",
    ),
    ("raycluster.yaml", f"{BOX}.resources.limits.{GPU}", REMOVE, f"{BOX}.resources.requests.nvidia.com/gpu", "missing"),
    ("raycluster.yaml", f"{POD}.tolerations", REMOVE, f"{POD}.tolerations", "tainted"),
    ("raycluster.yaml", f"{POD}.nodeSelector", {}, f"{GROUP}.labels.mimeo/market", "on demand"),
    (
        "raycluster.yaml",
        f"{BOX}.volumeMounts[0].name",
        "cahce",
        f"{BOX}.volumeMounts[0].name",
        "no volume is called cahce",
    ),
    ("raycluster.yaml", f"{HEAD}.rayStartParams", {}, f"{HEAD}.rayStartParams.num-cpus", "take work"),
    ("raycluster.yaml", f"{HEAD}.rayStartParams.num-cpus", "4", f"{HEAD}.rayStartParams.num-cpus", "take work"),
    (
        "raycluster.yaml",
        f"{HEAD}.template.spec.containers[0].resources.limits.{GPU}",
        "1",
        f"{HEAD}.template.spec.containers",
        "GPUs",
    ),
    (
        "raycluster.yaml",
        f"{HEAD}.template.spec.nodeSelector",
        {"karpenter.sh/capacity-type": "spot"},
        f"{HEAD}.template.spec.nodeSelector",
        "spot",
    ),
    # versions and the autoscaler
    ("raycluster.yaml", "spec.rayVersion", "2.59.0", "spec.rayVersion", "the project's is 2.60.0"),
    ("raycluster.yaml", "spec.rayVersion", REMOVE, "spec.rayVersion", "is missing"),
    ("raycluster.yaml", f"{BOX}.image", "rayproject/ray:2.52.0", f"{BOX}.image", "names Ray 2.52.0"),
    ("raycluster.yaml", f"{BOX}.image", "registry.example.com/mimeo:latest", f"{BOX}.image", "does not say its Ray"),
    ("raycluster.yaml", "spec.enableInTreeAutoscaling", False, "spec.enableInTreeAutoscaling", "never given back"),
    ("raycluster.yaml", "spec.autoscalerOptions.version", "v1", "spec.autoscalerOptions.version", "is not v2"),
    # keys
    (
        "raycluster.yaml",
        "spec.gcsFaultToleranceOptions.redisPassword",
        {"value": "hunter22"},
        "spec.gcsFaultToleranceOptions.redisPassword.value",
        "plain text",
    ),
    (
        "raycluster.yaml",
        "spec.gcsFaultToleranceOptions.redisPassword",
        REMOVE,
        "spec.gcsFaultToleranceOptions.redisPassword",
        "from no Secret",
    ),
    (
        "raycluster.yaml",
        "spec.gcsFaultToleranceOptions.redisAddress",
        REMOVE,
        "spec.gcsFaultToleranceOptions.redisAddress",
        "is missing",
    ),
    (
        "raycluster.yaml",
        f"{BOX}.env[3]",
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "abcdefgh"},
        f"{BOX}.env[3].value",
        "AWS_SECRET_ACCESS_KEY",
    ),
    (
        "raycluster.yaml",
        f"{BOX}.env[3]",
        {"name": "HF", "value": "hf_" + "aB3" * 10},
        f"{BOX}.env[3].value",
        "Hugging Face",
    ),
    # jobs
    ("rayjob.yaml", "spec.submissionMode", "K8SJobMode", "spec.submissionMode", "K8sJobMode"),
    ("rayjob.yaml", "spec.entrypoint", REMOVE, "spec.entrypoint", "is missing"),
    ("rayjob.yaml", "spec.rayClusterSpec", REMOVE, "spec.rayClusterSpec", "is missing"),
    ("rayjob.yaml", "spec.shutdownAfterJobFinishes", REMOVE, "spec.shutdownAfterJobFinishes", "would stay"),
    ("rayjob.yaml", "spec.backoffLimit", 50, "spec.backoffLimit", "above 10"),
    ("rayjob.yaml", "spec.runtimeEnvYAML", "just text", "spec.runtimeEnvYAML", "mapping"),
    (
        "rayjob.yaml",
        "spec.runtimeEnvYAML",
        "env_vars: {HF_TOKEN: abcdefgh}",
        "spec.runtimeEnvYAML.env_vars.HF_TOKEN",
        "secret",
    ),
    (
        "rayjob.yaml",
        "spec.rayClusterSpec.authOptions.mode",
        "disabled",
        "spec.rayClusterSpec.authOptions.mode",
        "is not token",
    ),
    (
        "rayjob.yaml",
        "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.containers[0].imag",
        "x",
        "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.containers[0].imag",
        "did you mean image?",
    ),
]


def expect(path: Path, where: str, words: str) -> None:
    lines = [str(problem) for problem in check(path).problems]
    assert [line for line in lines if line.startswith(f"{path}: {where}: ") and words in line], lines
    assert all("\n" not in line and len(line) < 600 for line in lines)


@pytest.mark.parametrize(
    ("source", "key", "value", "where", "words"), RAY_UP, ids=lambda v: v if isinstance(v, str) else ""
)
def test_ray_up(source: str, key: str, value: Any, where: str, words: str, tmp_path: Path) -> None:
    expect(planted(source, key, value, tmp_path), where, words)


@pytest.mark.parametrize(
    ("source", "key", "value", "where", "words"), KUBERAY, ids=lambda v: v if isinstance(v, str) else ""
)
def test_kuberay(source: str, key: str, value: Any, where: str, words: str, tmp_path: Path) -> None:
    kind = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}[source]
    expect(planted(f"kuberay/{source}", key, value, tmp_path), f"{kind}.{where}", words)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: hunter22}\n",
            "Secret.data",
            "secret",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: LoadBalancer}\n",
            "Service.spec.type",
            "opens",
        ),
        ("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: s}\n", "Ingress.kind", "opens"),
        (
            "apiVersion: ray.io/v1\nkind: RayClustre\nmetadata: {name: s}\n",
            "RayClustre.kind",
            "did you mean RayCluster?",
        ),
    ],
)
def test_objects_beside_a_cluster(text: str, where: str, words: str, tmp_path: Path) -> None:
    path = planted("kuberay/raycluster.yaml", "metadata.name", "other", tmp_path)
    path.write_text(path.read_text() + "---\n" + text)
    expect(path, where, words)


def test_several_mistakes_are_all_reported(tmp_path: Path) -> None:
    path = planted("aws.yaml", "cluster_name", REMOVE, tmp_path)
    path.write_text(
        path.read_text()
        .replace("use_internal_ips: true", "use_internal_ips: false")
        .replace("min_workers: 0", "min_workers: 99")
    )
    wheres = {problem.where.removeprefix(f"{path}: ") for problem in check(path).problems}
    assert {"cluster_name", "provider.use_internal_ips", f"{SPOT}.min_workers", "max_workers"} <= wheres


def test_no_spot_group_is_advice_only(tmp_path: Path) -> None:
    path = planted("aws.yaml", SPOT, REMOVE, tmp_path)
    findings = check(path)
    assert findings.problems == []
    assert "no type uses spot nodes" in str(findings.advice[0])


def test_ray_stop_on_machines_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text(
        "cluster_name: c\n"
        "provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}\n"
        "auth: {ssh_user: me}\n"
        "file_mounts: {~/.ray/auth_token: ~/.mimeo/ray-token}\n"
        "setup_commands: [chmod 600 ~/.ray/auth_token, 'pip install ray[default]==2.60.0']\n"
        "head_start_ray_commands: ['export RAY_AUTH_MODE=token; ray start --head "
        "--autoscaling-config=~/ray_bootstrap_config.yaml']\n"
        "worker_start_ray_commands: ['export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:6379']\n"
    )
    assert check(path).problems == []
    path.write_text(path.read_text().replace("worker_start_ray_commands: [", "worker_start_ray_commands: [ray stop, "))
    expect(path, "worker_start_ray_commands[0]", "ends every Ray")
