"""The check of a `ray up` file: Ray's own validation, offline, ray_up_schema.json, and the rules that neither says."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cluster.files import common
from engine.cluster.files.findings import Findings, at, join, listing, mapping, walk, whole
from engine.cluster.files.schema import load, validate

SCHEMA = "ray_up_schema.json"
CLOUDS = ("aws", "gcp", "azure")
SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
OPTIONS = {
    STARTS[0]: (
        ("--head", "starts no head", "add --head"),
        ("--autoscaling-config", "starts no autoscaler", "add --autoscaling-config=~/ray_bootstrap_config.yaml"),
    ),
    STARTS[1]: (("--address", "joins no head", "add --address=$RAY_HEAD_IP:6379"),),
}
START = re.compile(r"\bray start\b")
TOKEN = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
DASHBOARD = re.compile(r"--dashboard-host[=\s]+[\"']?([^\s\"';]+)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# the keys of what brings a Ray
INSTALLS = re.compile(r"(available_node_types\..*\.)?(docker\.\w*image|\w*(setup|initialization)_commands\[\d+\])")
CONSTRAINED = re.compile(r"-c \S*constraints\.txt")
OURSELVES = re.compile(r"[\s\"'](\S*/)?(mimeo|\.)(\[[a-z,]*\])?[\"']?(\s|$)")  # this project, as an argument of pip


def check(findings: Findings, document: dict[str, Any]) -> None:
    """Note everything that is wrong with a `ray up` file."""
    findings.kinds.append("ray up")
    cloud = str(at(document, "provider", "type"))
    _schemas(findings, document, cloud)
    if cloud in CLOUDS:
        _node_types(findings, document, cloud)
    elif cloud == "local":
        _local(findings, document)
    _versions(findings, document)
    for key in STARTS:
        _start(findings, document, key)
    _sent(findings, document)
    common.secrets(findings, document)
    common.open_addresses(findings, document)


def _schemas(findings: Findings, document: dict[str, Any], cloud: str) -> None:
    """Ray's schema, this project's, then Ray's own functions for what they alone know, without a cloud's packages."""
    import ray.autoscaler
    from ray.autoscaler._private.util import check_legacy_fields, prepare_config, validate_config

    config = copy.deepcopy(document)
    for node_type in mapping(config.get("available_node_types")).values():
        if isinstance(node_type, dict) and cloud == "aws":
            node_type.setdefault("resources", {})  # Ray asks the cloud for them
    validate(findings, json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text()), config)
    accepted = not findings.problems
    validate(findings, load(SCHEMA)[cloud if cloud in (*CLOUDS, "local") else "file"], document)
    if not accepted:
        return
    try:
        with _quiet():
            prepared = prepare_config(config)
            validate_config(prepared)
            check_legacy_fields(prepared)
    except Exception as error:  # whatever Ray's code meets in a file that is wrong is the file's fault
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = re.search(r"`(head_node_type|available_node_types|max_workers|provider)`", first)
        key = found.group(1) if found else ""
        if not findings.has(key):
            findings.problem(key, f"Ray refuses it: {first}", "correct it")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's own lines out of the answer."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _node_types(findings: Findings, document: dict[str, Any], cloud: str) -> None:
    types, most = mapping(document.get("available_node_types")), whole(document.get("max_workers"))
    workers: dict[str, tuple[Any, bool]] = {}
    for name, node_type in types.items():
        key, config = f"available_node_types.{name}", at(node_type, "node_config")
        if name == document.get("head_node_type"):
            validate(findings, load(SCHEMA)["head"], node_type, key)
        else:
            validate(findings, load(SCHEMA)["worker"], node_type, key)
            _limits(findings, key, mapping(node_type), most)
            workers[key] = (node_type, _is_spot(cloud, config))
        rule = _scheduling(config).get("onHostMaintenance")
        if cloud == "gcp" and whole(at(node_type, "resources", "GPU")) and rule != "TERMINATE":
            where = f"{key}.node_config.scheduling.onHostMaintenance"
            findings.problem(where, "must be TERMINATE on a node with GPUs", "set it")
    least = sum(whole(at(value, "min_workers")) or 0 for value in types.values())
    if most is not None and least > most:
        findings.problem("max_workers", f"is {most}, the types' min_workers add up to {least}", "raise it")
    common.market(findings, "available_node_types", "type", workers)


def _limits(findings: Findings, key: str, node_type: dict[str, Any], most: int | None) -> None:
    low, high = whole(node_type.get("min_workers")), whole(node_type.get("max_workers"))
    if low is not None and high is not None and low > high:
        findings.problem(f"{key}.min_workers", f"is {low}, max_workers is {high}", "lower it")
    if most is not None and high is not None and high > most:
        findings.problem(f"{key}.max_workers", f"is {high}, the whole cluster's max_workers is {most}", "lower it")


def _scheduling(config: Any) -> dict[str, Any]:
    """Google's `scheduling` as one mapping; Ray's own examples write it as a list of mappings."""
    value = at(config, "scheduling")
    return {key: item for part in [value, *listing(value)] for key, item in mapping(part).items()}


def _is_spot(cloud: str, config: Any) -> bool:
    """Whether a node configuration asks for nodes that the cloud may take away."""
    if cloud == "aws":
        return at(config, "InstanceMarketOptions", "MarketType") == "spot"
    if cloud == "gcp":
        asked = _scheduling(config)
        return asked.get("provisioningModel") == "SPOT" or asked.get("preemptible") is True
    return str(at(config, "azure_arm_parameters", "priority")).lower() in ("spot", "low")


def _local(findings: Findings, document: dict[str, Any]) -> None:
    for key in STARTS:
        for index, command in enumerate(listing(document.get(key))):
            if re.search(r"\bray stop\b", str(command)):
                what = "`ray stop` ends every Ray of the host, also that of others"
                findings.problem(join(key, index), what, "remove it")


def _versions(findings: Findings, document: dict[str, Any]) -> None:
    """Every Ray that is named is the project's, and one is named."""
    pin = common.pinned_ray()
    texts = [(key, value) for key, _, value in walk(document) if INSTALLS.fullmatch(key) and isinstance(value, str)]
    count = sum([common.versions(findings, key, text, pin) for key, text in texts])
    if not count and not any(CONSTRAINED.search(text) and OURSELVES.search(text) for _, text in texts):
        what = "installs no fixed version of Ray: Ray would install its nightly build"
        fix = f"install ray[default]=={pin} with -c constraints.txt, or name an image with it"
        findings.problem("setup_commands", what, fix)


def _start(findings: Findings, document: dict[str, Any], key: str) -> None:
    """The commands that start Ray on a node: with the token, and with a dashboard that only the head itself reaches."""
    commands = listing(document.get(key))
    starts = [(join(key, i), str(command)) for i, command in enumerate(commands) if START.search(str(command))]
    if not starts:
        what = "starts no Ray" if commands else "is missing: Ray's own commands open the dashboard and take no token"
        findings.problem(key, what, "start from a file in clusters/")
    docker = mapping(document.get("docker"))
    options = [docker.get("run_options"), docker.get(f"{key.partition('_')[0]}_run_options")]
    for where, command in starts:
        if not TOKEN.search(command) and not any("RAY_AUTH_MODE=token" in str(option) for option in options):
            findings.problem(where, "starts Ray without RAY_AUTH_MODE=token", "export it before `ray start`")
        for host in DASHBOARD.findall(command):
            if host not in LOOPBACK:
                what = f"opens the dashboard, which runs code, on {host}"
                findings.problem(where, what, "write --dashboard-host=127.0.0.1")
        for option, what, fix in OPTIONS[key]:
            if option not in command:
                findings.problem(where, what, fix)
        _token_file(findings, document, where, command)


def _token_file(findings: Findings, document: dict[str, Any], where: str, command: str) -> None:
    """The token that a start command uses is brought to every node, readable by its owner only."""
    found = re.search(r"\bRAY_AUTH_TOKEN_PATH=(\"[^\"]*\"|'[^']*'|\S+)", command)
    path = _home(found.group(1).rstrip(";")) if found else "~/.ray/auth_token"
    setup = " ".join(str(text) for key in SETUP for text in listing(document.get(key)))
    if path not in map(_home, mapping(document.get("file_mounts"))):
        findings.problem(f"file_mounts.{path}", f"is missing: {where} reads the token there", "mount the token file")
    elif not re.search(rf"chmod [0-7]?[46]00 [^&;|]*{re.escape(Path(path).name)}", setup):
        what = "no setup command makes it readable by its owner only"
        findings.problem(f"file_mounts.{path}", what, f"add chmod 600 {path}")


def _home(path: str) -> str:
    return re.sub(r"^\$\{?HOME\}?/", "~/", path.strip("\"'"))


def _sent(findings: Findings, document: dict[str, Any]) -> None:
    """A folder that is copied to the nodes goes without what .rayignore names."""
    sources = [str(path) for path in mapping(document.get("file_mounts")).values()]
    folders = [path for path in sources if path.endswith(("/", ".")) or Path(path).expanduser().is_dir()]
    if folders and ".rayignore" not in listing(document.get("rsync_filter")):
        what = f"lacks .rayignore: {folders[0]} would be sent with .env, .aws, .ssh, *.pem and the like"
        findings.problem("rsync_filter", what, "add .rayignore, with the lines of the project's own")
