"""What each cloud's part of a `ray up` file may say, and the rules for addresses, roles and spot nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.cluster.files.findings import Findings, at, listing, mapping, nearest


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


COMMON = {"type", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes", "availability_zone"}
AWS_NODE = words("""
AdditionalInfo BlockDeviceMappings CapacityReservationSpecification ClientToken CpuOptions CreditSpecification
DisableApiStop DisableApiTermination DryRun EbsOptimized ElasticGpuSpecification ElasticInferenceAccelerators
EnablePrimaryIpv6 EnclaveOptions HibernationOptions IamInstanceProfile ImageId InstanceInitiatedShutdownBehavior
InstanceMarketOptions InstanceType Ipv6AddressCount Ipv6Addresses KernelId KeyName LaunchTemplate LicenseSpecifications
MaintenanceOptions MetadataOptions Monitoring NetworkInterfaces NetworkPerformanceOptions Operator Placement
PrivateDnsNameOptions PrivateIpAddress RamdiskId SecondaryInterfaces SecurityGroupIds SecurityGroups SubnetIds
TagSpecifications UserData
""")
GCP_NODE = words("""
acceleratorType advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description disks
displayDevice guestAccelerators hostname instanceEncryptionKey keyRevocationActionType labels machineType metadata
minCpuPlatform networkConfig networkInterfaces networkPerformanceConfig params privateIpv6GoogleAccess
localSsdEncryptionMode shieldedInstanceIntegrityPolicy sourceMachineImageEncryptionKey workloadIdentityConfig
reservationAffinity resourcePolicies runtimeVersion scheduling schedulingConfig serviceAccounts shieldedInstanceConfig
sourceInstanceTemplate sourceMachineImage tags
""")
AZURE_PARAMETERS = words("""
adminUsername availability_zone billingProfile enableAcceleratedNetworking evictionPolicy imageId imageOffer
imagePublisher imageSku imageVersion osDiskSize priority provisionPublicIp publicKey vmSize zones
""")


@dataclass(frozen=True)
class Provider:
    """A cloud: what must be said about the place, which keys exist, and what a node's configuration may hold."""

    required: tuple[str, ...]
    keys: frozenset[str]
    node: frozenset[str]
    cloud: bool = True


PROVIDERS = {
    "aws": Provider(
        ("region",),
        frozenset(COMMON | {"region", "key_pair", "security_group", "cloudwatch", "aws_credentials"}),
        AWS_NODE,
    ),
    "gcp": Provider(
        ("region", "availability_zone", "project_id"),
        frozenset(COMMON | {"region", "project_id", "gcp_credentials"}),
        GCP_NODE,
    ),
    "azure": Provider(
        ("location", "resource_group"),
        frozenset(
            COMMON
            | {"location", "resource_group", "subscription_id", "tags", "unique_id", "subnet_mask"}
            | {"msi_name", "msi_resource_group"}
        ),
        frozenset({"azure_arm_parameters", "tags"}),
    ),
    "local": Provider(
        (),
        frozenset({"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address", "use_internal_ips"}),
        frozenset(),
        cloud=False,
    ),
}


def scheduling(config: Any) -> dict[str, Any]:
    """Google's `scheduling` as one mapping; Ray's own examples write it as a list of mappings."""
    value = mapping(config).get("scheduling")
    merged = mapping(value)
    for part in listing(value):
        merged |= mapping(part)
    return merged


def is_spot(provider: str, config: Any) -> bool:
    """Whether a node configuration asks for nodes that the cloud may take away."""
    if provider == "aws":
        return at(config, "InstanceMarketOptions", "MarketType") == "spot"
    if provider == "gcp":
        asked = scheduling(config)
        return asked.get("provisioningModel") == "SPOT" or asked.get("preemptible") is True
    return str(at(config, "azure_arm_parameters", "priority")).lower() in ("spot", "low")


def check_provider(findings: Findings, section: dict[str, Any]) -> Provider | None:
    """The provider section: a known cloud, its place, known keys, private addresses; returns the cloud."""
    name = str(section.get("type"))
    provider = PROVIDERS.get(name)
    if provider is None:
        if section:
            findings.problem(
                "provider.type", f"{name} is not a provider that is checked here", nearest(name, PROVIDERS)
            )
        return None
    for key in provider.required:
        if not section.get(key):
            findings.problem(f"provider.{key}", "is missing", "Ray would fill in a place of its own: name yours")
    for key in section:
        if key not in provider.keys:
            findings.problem(f"provider.{key}", f"is not a setting of {name}", nearest(key, provider.keys))
    if provider.cloud:
        if section.get("use_internal_ips") is not True:
            findings.problem("provider.use_internal_ips", "is not true: nodes get public addresses", "set it to true")
        if section.get("use_external_head_ip"):
            findings.problem("provider.use_external_head_ip", "gives the head a public address", "remove it")
    return provider


def check_node_config(findings: Findings, name: str, provider: Provider, key: str, value: Any) -> None:
    """One node type's configuration: known keys, no public address, a role, a firewall of the user's."""
    config = mapping(value)
    for field in config:
        if field not in provider.node:
            findings.problem(f"{key}.{field}", f"is not a setting of a node on {name}", nearest(field, provider.node))
    {"aws": _aws, "gcp": _gcp, "azure": _azure}[name](findings, key, config)


def _aws(findings: Findings, key: str, config: dict[str, Any]) -> None:
    interfaces = listing(config.get("NetworkInterfaces"))
    for index, interface in enumerate(interfaces):
        if mapping(interface).get("AssociatePublicIpAddress"):
            where = f"{key}.NetworkInterfaces[{index}].AssociatePublicIpAddress"
            findings.problem(where, "gives the node a public address", "remove it")
    if not config.get("InstanceType") and not config.get("LaunchTemplate"):
        findings.problem(f"{key}.InstanceType", "is missing", "name an instance type")
    if not config.get("SecurityGroupIds") and not interfaces and not config.get("LaunchTemplate"):
        findings.problem(
            f"{key}.SecurityGroupIds",
            "is missing: Ray would make a group that opens port 22 to every address",
            "name a group that lets its own members in",
        )
    if not config.get("IamInstanceProfile") and not config.get("LaunchTemplate"):
        findings.problem(
            f"{key}.IamInstanceProfile", "is missing: nodes could reach the bucket by keys only", "name a role"
        )


def _gcp(findings: Findings, key: str, config: dict[str, Any]) -> None:
    interfaces = listing(config.get("networkInterfaces"))
    if not interfaces and not config.get("networkConfig"):
        findings.problem(
            f"{key}.networkInterfaces",
            "is missing: Ray would add an interface with a public address",
            "name a subnetwork, without accessConfigs",
        )
    for index, interface in enumerate(interfaces):
        if "accessConfigs" in mapping(interface):
            where = f"{key}.networkInterfaces[{index}].accessConfigs"
            findings.problem(where, "gives the node a public address", "remove it")
    if not config.get("machineType") and not config.get("acceleratorType"):
        findings.problem(f"{key}.machineType", "is missing", "name a machine type")
    if not config.get("serviceAccounts"):
        findings.problem(
            f"{key}.serviceAccounts", "is missing: nodes could reach the bucket by keys only", "name a service account"
        )


def _azure(findings: Findings, key: str, config: dict[str, Any]) -> None:
    parameters = mapping(config.get("azure_arm_parameters"))
    where = f"{key}.azure_arm_parameters"
    for field in parameters:
        if field not in AZURE_PARAMETERS:
            findings.problem(
                f"{where}.{field}", "is not a parameter of Ray's Azure template", nearest(field, AZURE_PARAMETERS)
            )
    if parameters.get("provisionPublicIp"):
        findings.problem(f"{where}.provisionPublicIp", "gives the node a public address", "remove it")
    if not parameters.get("vmSize"):
        findings.problem(f"{where}.vmSize", "is missing", "name a size")
