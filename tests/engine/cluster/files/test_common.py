"""What counts as a secret, and what does not."""

from __future__ import annotations

import pytest

from engine.cluster.files.common import secrets, versions
from engine.cluster.files.findings import Findings


def found(document: object) -> list[str]:
    findings = Findings("f")
    secrets(findings, document)
    return [problem.where for problem in findings.problems]


@pytest.mark.parametrize(
    "document",
    [
        {"a": [{"aws_secret_access_key": "abcd1234"}]},
        {"password": "hunter22"},
        {"env": [{"name": "HF_TOKEN", "value": "abcd1234"}]},
        {"c": "redis-cli --password hunter22"},
        {"c": "export WANDB_API_KEY='0123abcd'"},
        {"c": "x https://a.blob.core.windows.net/c?sv=1&sig=abc"},
        {"c": "token 0123456789abcdef0123456789abcdef"},
        {"c": "ghp_" + "a1B2" * 9},
        {"gcp_credentials": {"type": "service_account", "credentials": "{}"}},
    ],
)
def test_secrets(document: object) -> None:
    assert len(found(document)) == 1


@pytest.mark.parametrize(
    "document",
    [
        {"ssh_private_key": "~/.ssh/key.pem"},
        {"c": 'export RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"'},
        {"c": "export HF_TOKEN=$(cat ~/.hf)"},
        {"c": 'export HF_TOKEN="$TOKEN"'},
        {"password": "$REDIS_PASSWORD"},
        {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
        {"subscription_id": "00000000-1111-2222-3333-444444444444"},
        {"image": "registry.example.com/mimeo@sha256:" + "0a1b2c3d" * 8},
        {"ImageId": "ami-0123456789abcdef0"},
        {"email": "mimeo-worker@my-project.iam.gserviceaccount.com"},
        {"token": "", "api_key": None},
    ],
)
def test_no_secrets(document: object) -> None:
    assert found(document) == []


@pytest.mark.parametrize(
    ("text", "count", "wrong"),
    [
        ("pip install ray==2.60.0", 1, 0),
        ('pip install "ray[default,data]==2.59.0"', 1, 1),
        ("rayproject/ray:2.60.0-py311-gpu", 1, 0),
        ("rayproject/ray-ml:2.9.0", 1, 1),
        ("example.com/mimeo:ray-2.60.0", 1, 0),
        ("https://x/ray-3.0.0.dev0-cp311-linux.whl", 1, 1),
        ("rayproject/ray:nightly", 1, 1),
        ("pip install torch==2.15.0 array==1.0.0", 0, 0),
        ("~/venv/bin/ray stop", 0, 0),
    ],
)
def test_versions(text: str, count: int, wrong: int) -> None:
    findings = Findings("f")
    assert versions(findings, "k", text, "2.60.0") == count
    assert len(findings.problems) == wrong
