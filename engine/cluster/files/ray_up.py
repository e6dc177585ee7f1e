"""The check of a `ray up` file: Ray's own validation, offline, and the rules for what Ray does not look at."""

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
from engine.cluster.files.findings import Findings, at, join, listing, mapping, whole
from engine.cluster.files.providers import Provider, check_node_config, check_provider, is_spot, scheduling
from engine.cluster.files.schema import validate

SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
IMAGES = ("image", "head_image", "worker_image")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MARKET = "mimeo/market"
OURSELVES = re.compile(r"[\s\"'](\S*/)?(mimeo|\.)(\[[a-z,]*\])?[\"']?(\s|$)")  # this project, as an argument of pip


def check(findings: Findings, document: dict[str, Any]) -> None:
    """Note everything that is wrong with a `ray up` file."""
    findings.kinds.append("ray up")
    _ray(findings, document)
    if not document.get("cluster_name"):
        findings.problem("cluster_name", "is missing", "Ray would call it default: give it a name")
    section = mapping(document.get("provider"))
    provider = check_provider(findings, section)
    if provider is not None and provider.cloud:
        _node_types(findings, document, str(section.get("type")), provider)
    elif provider is not None:
        _local(findings, document)
    _versions(findings, document)
    for key in STARTS:
        _start(findings, document, key)
    _token_file(findings, document)
    _sent(findings, document)
    common.secrets(findings, document)
    common.open_addresses(findings, document)


def _ray(findings: Findings, document: dict[str, Any]) -> None:
    """Ray's schema for every fault, then its own functions for what they alone know; both without a cloud's
    packages."""
    import ray.autoscaler
    from ray.autoscaler._private.util import check_legacy_fields, prepare_config, validate_config

    config = copy.deepcopy(document)
    for node_type in mapping(config.get("available_node_types")).values():
        if isinstance(node_type, dict) and at(config, "provider", "type") == "aws":
            node_type.setdefault("resources", {})  # Ray asks the cloud for them
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    before = len(findings.problems)
    validate(findings, schema, config)
    if len(findings.problems) > before:
        return
    try:
        with _quiet():
            prepared = prepare_config(config)
            validate_config(prepared)
            check_legacy_fields(prepared)
    except Exception as error:  # whatever Ray's code meets in a file that is wrong is the file's fault
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = re.search(r"`(head_node_type|available_node_types|max_workers|provider)`", first)
        findings.problem(found.group(1) if found else "", f"Ray refuses it: {first}", "correct it")


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


def _node_types(findings: Findings, document: dict[str, Any], name: str, provider: Provider) -> None:
    types = mapping(document.get("available_node_types"))
    head = document.get("head_node_type")
    if head is None:
        findings.problem("head_node_type", "is missing", "name the head's type of available_node_types")
    if not types:
        findings.problem("available_node_types", "is missing", "name the head and at least one worker type")
    most = whole(document.get("max_workers"))
    if most is None:
        findings.problem("max_workers", "is missing", "Ray would allow two: say what the cluster may cost")
    spot = False
    for type_name, value in types.items():
        node_type, key = mapping(value), f"available_node_types.{type_name}"
        check_node_config(findings, name, provider, f"{key}.node_config", node_type.get("node_config"))
        if type_name == head:
            _head(findings, key, node_type)
        else:
            _limits(findings, key, node_type, most)
            asked = is_spot(name, node_type.get("node_config"))
            spot = spot or asked
            label = at(node_type, "labels", MARKET)
            if label is not None and (label == "spot") != asked:
                findings.problem(
                    f"{key}.labels.{MARKET}",
                    f"says {label}, the nodes are {'spot' if asked else 'on demand'}",
                    "make them agree",
                )
        gpus = whole(at(node_type, "resources", "GPU")) or 0
        rule = scheduling(node_type.get("node_config")).get("onHostMaintenance")
        if name == "gcp" and gpus and rule != "TERMINATE":
            where = f"{key}.node_config.scheduling.onHostMaintenance"
            findings.problem(where, "must be TERMINATE on a node with GPUs", "set it")
    least = sum(whole(at(value, "min_workers")) or 0 for value in types.values())
    if most is not None and least > most:
        findings.problem("max_workers", f"is {most}, the types' min_workers add up to {least}", "raise it")
    if types and not spot:
        findings.advise(
            "available_node_types", "no type uses spot nodes", "they cost a fraction, and a run survives their loss"
        )


def _head(findings: Findings, key: str, node_type: dict[str, Any]) -> None:
    cpus = at(node_type, "resources", "CPU")
    if cpus != 0:
        findings.problem(
            f"{key}.resources.CPU", "is not 0: the head would take work and could be starved", "set it to 0"
        )
    if at(node_type, "resources", "GPU"):
        findings.problem(f"{key}.resources.GPU", "the head would take work", "choose a type without GPUs")
    if node_type.get("max_workers"):
        findings.problem(f"{key}.max_workers", "is not 0: the head's type would be started as a worker", "set it to 0")


def _limits(findings: Findings, key: str, node_type: dict[str, Any], most: int | None) -> None:
    low, high = whole(node_type.get("min_workers")), whole(node_type.get("max_workers"))
    if low is not None and low < 0:
        findings.problem(f"{key}.min_workers", "is negative", "set it to 0")
    if high is None:
        findings.problem(f"{key}.max_workers", "is missing", "say how many of these nodes there may be")
        return
    if low is not None and low > high:
        findings.problem(f"{key}.min_workers", f"is {low}, max_workers is {high}", "lower it")
    if most is not None and high > most:
        findings.problem(f"{key}.max_workers", f"is {high}, the whole cluster's max_workers is {most}", "lower it")


def _local(findings: Findings, document: dict[str, Any]) -> None:
    for key in STARTS:
        for index, command in enumerate(listing(document.get(key))):
            if isinstance(command, str) and re.search(r"\bray stop\b", command):
                findings.problem(
                    f"{key}[{index}]", "`ray stop` ends every Ray of the host, also that of others", "remove it"
                )


def _versions(findings: Findings, document: dict[str, Any]) -> None:
    """Every Ray that is named is the project's, and one is named."""
    pin = common.pinned_ray()
    docker = mapping(document.get("docker"))
    count = sum(common.versions(findings, f"docker.{key}", docker.get(key), pin) for key in IMAGES)
    constrained = False
    for key in SETUP:
        for index, command in enumerate(listing(document.get(key))):
            count += common.versions(findings, f"{key}[{index}]", command, pin)
            constrained = constrained or bool(
                re.search(r"-c \S*constraints\.txt", str(command)) and OURSELVES.search(str(command))
            )
    for type_name, value in mapping(document.get("available_node_types")).items():
        own = mapping(at(value, "docker"))
        key = f"available_node_types.{type_name}"
        count += common.versions(findings, f"{key}.docker.worker_image", own.get("worker_image"), pin)
        for index, command in enumerate(listing(at(value, "worker_setup_commands"))):
            count += common.versions(findings, f"{key}.worker_setup_commands[{index}]", command, pin)
    if not count and not constrained:
        findings.problem(
            "setup_commands",
            "installs no fixed version of Ray: Ray would install its nightly build",
            f"install ray[default]=={pin} with -c constraints.txt, or name an image with it",
        )


def _start(findings: Findings, document: dict[str, Any], key: str) -> None:
    """The commands that start Ray on a node: with the token, and with a dashboard that only the head itself reaches."""
    commands = listing(document.get(key))
    starts = [(i, c) for i, c in enumerate(commands) if isinstance(c, str) and re.search(r"\bray start\b", c)]
    if not starts:
        what = "starts no Ray" if commands else "is missing: Ray's own commands open the dashboard and take no token"
        findings.problem(key, what, "start from a file in clusters/")
    head = key == STARTS[0]
    for index, command in starts:
        where = join(key, index)
        if not re.search(r"\bRAY_AUTH_MODE=[\"']?token\b", command) and not _docker_token(document, head):
            findings.problem(where, "starts Ray without RAY_AUTH_MODE=token", "export it before `ray start`")
        for found in re.finditer(r"--dashboard-host[=\s]+[\"']?([^\s\"';]+)", command):
            if found.group(1) not in LOOPBACK:
                findings.problem(
                    where,
                    f"opens the dashboard, which runs code, on {found.group(1)}",
                    "write --dashboard-host=127.0.0.1",
                )
        if head and "--head" not in command:
            findings.problem(where, "starts no head", "add --head")
        if head and "--autoscaling-config" not in command:
            findings.problem(where, "starts no autoscaler", "add --autoscaling-config=~/ray_bootstrap_config.yaml")
        if not head and "--address" not in command:
            findings.problem(where, "joins no head", "add --address=$RAY_HEAD_IP:6379")


def _sent(findings: Findings, document: dict[str, Any]) -> None:
    """A folder that is copied to the nodes goes without what .rayignore names."""
    folders = [path for path in mapping(document.get("file_mounts")).values() if _is_folder(str(path))]
    if folders and ".rayignore" not in listing(document.get("rsync_filter")):
        what = f"lacks .rayignore: {folders[0]} would be sent with .env, .aws, .ssh, *.pem and the like"
        findings.problem("rsync_filter", what, "add .rayignore, with the lines of the project's own")


def _is_folder(path: str) -> bool:
    return path.endswith(("/", ".")) or Path(path).expanduser().is_dir()


def _docker_token(document: dict[str, Any], head: bool) -> bool:
    docker = mapping(document.get("docker"))
    options = [*listing(docker.get("run_options")), *listing(docker.get(f"{'head' if head else 'worker'}_run_options"))]
    return any("RAY_AUTH_MODE=token" in str(option) for option in options)


def _home(path: str) -> str:
    return re.sub(r"^\$\{?HOME\}?/", "~/", path.strip("\"'"))


def _token_file(findings: Findings, document: dict[str, Any]) -> None:
    """The token that the start commands use is brought to every node, readable by its owner only."""
    mounts = {_home(path) for path in mapping(document.get("file_mounts"))}
    setup = " ".join(str(c) for key in SETUP for c in listing(document.get(key)))
    for key in STARTS:
        for index, command in enumerate(listing(document.get(key))):
            if not isinstance(command, str) or not re.search(r"\bray start\b", command):
                continue
            found = re.search(r"\bRAY_AUTH_TOKEN_PATH=(\"[^\"]*\"|'[^']*'|\S+)", command)
            path = _home(found.group(1).rstrip(";")) if found else "~/.ray/auth_token"
            if path not in mounts:
                findings.problem(
                    f"file_mounts.{path}",
                    f"is missing: {join(key, index)} reads the token there",
                    "mount the token file",
                )
            elif not re.search(rf"chmod [0-7]?[46]00 [^&;|]*{re.escape(Path(path).name)}", setup):
                findings.problem(
                    f"file_mounts.{path}",
                    "no setup command makes it readable by its owner only",
                    f"add chmod 600 {path}",
                )
