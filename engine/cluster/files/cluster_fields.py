"""The fields of KubeRay's RayCluster and RayJob (ray.io/v1), and of the pod templates in them, as JSON schemas."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

ANY: Schema = {}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
FREE: Schema = {"type": "object"}
QUANTITY: Schema = {"type": ["string", "integer", "number"]}
PORT: Schema = {"type": ["string", "integer"]}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """A mapping of known fields; any other is refused."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def several(item: Schema, least: int = 0) -> Schema:
    """A list of items."""
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values: str) -> Schema:
    """A text out of a few."""
    return {"enum": list(values)}


def named(names: str, schema: Schema = ANY) -> dict[str, Schema]:
    """Fields that are allowed by name and looked at no further."""
    return dict.fromkeys(names.split(), schema)


METADATA = closed(
    name=TEXT, generateName=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS, finalizers=several(TEXT)
)
SELECTOR = closed(("name", "key"), name=TEXT, key=TEXT, optional=FLAG)
VALUE_FROM = closed(secretKeyRef=SELECTOR, configMapKeyRef=SELECTOR, fieldRef=FREE, resourceFieldRef=FREE)
ENV = closed(("name",), name=TEXT, value=TEXT, valueFrom=VALUE_FROM)
REFERENCE = closed(name=TEXT, optional=FLAG)
ENV_FROM = closed(prefix=TEXT, secretRef=REFERENCE, configMapRef=REFERENCE)
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = closed(limits=QUANTITIES, requests=QUANTITIES, claims=several(FREE))
MOUNT = closed(
    ("name", "mountPath"),
    name=TEXT,
    mountPath=TEXT,
    subPath=TEXT,
    subPathExpr=TEXT,
    readOnly=FLAG,
    mountPropagation=TEXT,
    recursiveReadOnly=TEXT,
)
PULL = one_of("Always", "IfNotPresent", "Never")
CONTAINER_PORT = closed(("containerPort",), containerPort=COUNT, name=TEXT, protocol=TEXT, hostPort=COUNT, hostIP=TEXT)
CONTAINER = closed(
    ("name",),
    name=TEXT,
    image=TEXT,
    imagePullPolicy=PULL,
    command=several(TEXT),
    args=several(TEXT),
    workingDir=TEXT,
    env=several(ENV),
    envFrom=several(ENV_FROM),
    ports=several(CONTAINER_PORT),
    resources=RESOURCES,
    volumeMounts=several(MOUNT),
    securityContext=FREE,
    livenessProbe=FREE,
    readinessProbe=FREE,
    startupProbe=FREE,
    lifecycle=FREE,
    restartPolicy=TEXT,
    **named("resizePolicy stdin stdinOnce tty volumeDevices"),
    **named("terminationMessagePath terminationMessagePolicy", TEXT),
)
TOLERATION = closed(
    key=TEXT,
    operator=one_of("Exists", "Equal"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds=COUNT,
)
VOLUME = closed(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG),
    emptyDir=closed(medium=TEXT, sizeLimit=QUANTITY),
    configMap=closed(name=TEXT, items=several(FREE), defaultMode=COUNT, optional=FLAG),
    secret=closed(secretName=TEXT, items=several(FREE), defaultMode=COUNT, optional=FLAG),
    **named("awsElasticBlockStore azureDisk azureFile cephfs csi downwardAPI ephemeral fc gcePersistentDisk hostPath"),
    **named("image iscsi nfs projected rbd", FREE),
)
POD = closed(
    ("containers",),
    containers=several(CONTAINER, 1),
    initContainers=several(CONTAINER),
    volumes=several(VOLUME),
    nodeSelector=TEXTS,
    tolerations=several(TOLERATION),
    serviceAccountName=TEXT,
    automountServiceAccountToken=FLAG,
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    terminationGracePeriodSeconds=COUNT,
    priorityClassName=TEXT,
    imagePullSecrets=several(REFERENCE),
    hostNetwork=FLAG,
    hostPID=FLAG,
    hostIPC=FLAG,
    securityContext=FREE,
    affinity=FREE,
    **named("activeDeadlineSeconds dnsConfig dnsPolicy enableServiceLinks ephemeralContainers hostAliases hostUsers"),
    **named("hostname hostnameOverride nodeName os overhead preemptionPolicy priority readinessGates resourceClaims"),
    **named("resources runtimeClassName schedulerName schedulingGates serviceAccount setHostnameAsFQDN"),
    **named("shareProcessNamespace subdomain topologySpreadConstraints"),
)
TEMPLATE = closed(("spec",), metadata=METADATA, spec=POD)
HEAD = closed(
    ("template",),
    template=TEMPLATE,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    headService=FREE,
    enableIngress=FLAG,
    ingressOptions=FREE,
)
WORKERS = closed(
    ("groupName", "template"),
    groupName=TEXT,
    template=TEMPLATE,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    suspend=FLAG,
    scaleStrategy=closed(workersToDelete=several(TEXT)),
)
AUTOSCALER = closed(
    version=one_of("v1", "v2"),
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    idleTimeoutSeconds=COUNT,
    image=TEXT,
    imagePullPolicy=PULL,
    resources=RESOURCES,
    securityContext=FREE,
    env=several(ENV),
    envFrom=several(ENV_FROM),
    volumeMounts=several(MOUNT),
    command=several(TEXT),
    args=several(TEXT),
)
CREDENTIAL = closed(value=TEXT, valueFrom=VALUE_FROM)
CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    headGroupSpec=HEAD,
    workerGroupSpecs=several(WORKERS),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    authOptions=closed(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    gcsFaultToleranceOptions=closed(
        backend=one_of("redis", "rocksdb"),
        redisAddress=TEXT,
        redisUsername=CREDENTIAL,
        redisPassword=CREDENTIAL,
        externalStorageNamespace=TEXT,
        storage=FREE,
    ),
    headServiceAnnotations=TEXTS,
    managedBy=one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    upgradeStrategy=closed(type=one_of("Recreate", "None")),
    suspend=FLAG,
    networkPolicy=FREE,
    tlsOptions=closed(enabled=FLAG),
    historyServerOptions=FREE,
)
JOB = closed(
    rayClusterSpec=CLUSTER,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    clusterSelector=TEXTS,
    submitterPodTemplate=TEMPLATE,
    submitterConfig=closed(backoffLimit=COUNT),
    managedBy=one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    deletionStrategy=FREE,
    metadata=TEXTS,
    jobId=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    suspend=FLAG,
)


def resource(kind: str) -> Schema:
    """The schema of a whole RayCluster or RayJob."""
    spec = {"RayCluster": CLUSTER, "RayJob": JOB}[kind]
    return closed(("metadata", "spec"), apiVersion=one_of("ray.io/v1"), kind=one_of(kind), metadata=METADATA, spec=spec)
