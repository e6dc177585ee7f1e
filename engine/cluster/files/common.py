"""Rules that hold for every cluster file: no secrets, nothing open to the world, one version of Ray."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from engine.cluster.files.findings import Findings, at, join, mapping, walk

SECRET_NAME = re.compile(
    r"(secret_?access_?key|access_?key_?id|session_?token|client_?secret|account_?key|connection_?string|sas_?token"
    r"|password|passwd|private_?key|api_?key|auth_?token|_token$|^token$|_secret$)",
    re.IGNORECASE,
)
CREDENTIALS = {"aws_credentials", "gcp_credentials", "azure_credentials"}
SECRET_VALUES = (
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), "a private key"),
    (re.compile(r"\bAccountKey\s*=", re.IGNORECASE), "an Azure storage key"),
    (re.compile(r"(SharedAccessSignature\s*=|[?&]sig=)", re.IGNORECASE), "an Azure shared access signature"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), "a Hugging Face token"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}\b"), "a GitHub token"),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{35}"), "a Google key"),
    (re.compile(r"\bya29\.[0-9A-Za-z_-]{20,}"), "a Google token"),
)
ASSIGNMENT = re.compile(
    r"(?:\b(?P<name>[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY))"
    r"|(?P<option>--[a-z-]*(?:password|token|secret)))(?:=|(?<=[a-z])\s+)[\"']?(?P<value>[^\s\"';$~/<-][^\s\"';]{3,})"
)
LONG_HEX = re.compile(r"(?<![\w:/-])[0-9a-f]{32,}(?![\w-])", re.IGNORECASE)
LONG_TEXT = re.compile(r"(?<![\w:/.-])[A-Za-z0-9+_]{40,}={0,2}(?![\w/.-])")
SECRET_FIX = "give the machines a role, or mount the secret from a file or a Secret object that is not in this one"
VERSIONS = (
    re.compile(r"\bray(?:\[[^\]]*\])?\s*==\s*[\"']?(?P<version>[0-9][\w.]*)"),
    re.compile(r"\bray(?:-[a-z]+)?[-:]v?(?P<version>[0-9]+\.[0-9][\w.]*|latest\b|nightly\b)"),
)
PIN_FILE = Path(__file__).resolve().parents[3] / "constraints.txt"


def pinned_ray() -> str:
    """The Ray version of the project's constraints.txt, else (as in a wheel) that of this installation."""
    if PIN_FILE.is_file():
        found = re.search(r"^ray==(\S+)", PIN_FILE.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return importlib.metadata.version("ray")


def versions(findings: Findings, key: str, text: Any, pin: str) -> int:
    """Compare each Ray version that a command or an image names with the pin; returns how many it names."""
    if not isinstance(text, str):
        return 0
    count = 0
    for pattern in VERSIONS:
        for found in pattern.finditer(text):
            count += 1
            if found["version"] != pin:
                findings.problem(key, f"names Ray {found['version']}, the project's is {pin}", f"write {pin}")
    return count


def secrets(findings: Findings, document: Any, prefix: str = "") -> None:
    """No keys, tokens or passwords in the file."""
    for key, name, value in walk(document, prefix):
        if name in CREDENTIALS and value:
            findings.problem(key, "holds credentials", SECRET_FIX)
        elif isinstance(value, str):
            if reason := _secret(name, value):
                findings.problem(key, f"holds {reason}", SECRET_FIX)
        elif isinstance(value, dict):
            item = mapping(value)
            value, name = item.get("value"), str(item.get("name", ""))
            if isinstance(value, str) and SECRET_NAME.search(name) and _literal(value):
                findings.problem(join(key, "value"), f"holds the secret {name}", SECRET_FIX)


def _literal(value: str) -> bool:
    return len(value) >= 4 and not re.match(r"[$~/.<]", value)


def _secret(name: str, value: str) -> str:
    for pattern, reason in SECRET_VALUES:
        if pattern.search(value):
            return reason
    if SECRET_NAME.search(name) and "/" not in name and " " not in value and _literal(value):
        return "what looks like a secret"
    if found := ASSIGNMENT.search(value):
        return f"the secret {found['name'] or found['option']}"
    hexes = [m.group() for m in LONG_HEX.finditer(value)]
    if any(sum(c.isdigit() for c in text) >= 8 and sum(c.isalpha() for c in text) >= 4 for text in hexes):
        return "a long token"
    for text in (m.group() for m in LONG_TEXT.finditer(value)):
        kinds = [sum(map(test, text)) for test in (str.isdigit, str.isupper, str.islower)]
        if min(kinds) >= 3:
            return "a long token"
    return ""


def open_addresses(findings: Findings, document: Any, prefix: str = "") -> None:
    """Nothing is reachable from every address of the internet."""
    for key, name, value in walk(document, prefix):
        if not isinstance(value, str):
            continue
        everywhere = "0.0.0.0/0" in value or "::/0" in value
        if name in ("sourceAddressPrefix", "source_address_prefix"):
            everywhere = everywhere or value.lower() in ("*", "internet", "any")
        if everywhere:
            findings.problem(key, f"opens ports to every address ({value})", "name the network that may connect")


def market(findings: Findings, key: str, unit: str, groups: dict[str, tuple[Any, bool]]) -> None:
    """The label mimeo/market of each group of workers (by its dotted key) says whether its nodes are spot nodes."""
    for where, (group, spot) in groups.items():
        label = at(group, "labels", "mimeo/market")
        if label is not None and (label == "spot") != spot:
            what = f"says {label}, the nodes are {'spot' if spot else 'on demand'}"
            findings.problem(f"{where}.labels.mimeo/market", what, "make them agree")
    if groups and not any(spot for _, spot in groups.values()):
        findings.advise(key, f"no {unit} uses spot nodes", "they cost a fraction, and a run survives their loss")
