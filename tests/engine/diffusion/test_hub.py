"""Where checkpoints are found: directories, and snapshots in the Hub's cache without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from engine.diffusion.checkpoint import inspect
from engine.diffusion.hub import locate
from engine.errors import ConfigError
from engine.spec.models import ModelSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_directory_is_taken_as_it_is(folders: dict[str, Path]) -> None:
    assert locate(str(folders["digits"]), None) == folders["digits"].resolve()


def test_a_cached_snapshot_is_used_offline(cache: Path, folders: dict[str, Path]) -> None:
    snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(folders["digits"], snapshot)
    assert locate("owner/name", COMMIT) == snapshot
    model = ModelSpec(checkpoint="owner/name", revision=COMMIT)
    assert inspect(model, 8).digest == inspect(ModelSpec(checkpoint=str(folders["digits"])), 8).digest


@pytest.mark.parametrize(
    ("checkpoint", "revision", "message"),
    [
        (None, None, "model.checkpoint: is not set"),
        ("/no/such/place", None, "/no/such/place does not exist"),
        ("./nothing", None, "does not exist"),
        ("a/b/c", COMMIT, "does not exist"),
        ("owner/name", None, "needs model.revision, a commit's 40 hex digits"),
        ("owner/name", "main", "needs model.revision"),
        ("owner/name", COMMIT, "not in the local cache, and the Hub cannot be reached; run `hf download owner/name"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_cannot_be_had_is_one_line(checkpoint: str | None, revision: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(checkpoint, revision)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_file_is_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is a file, not a diffusers directory; convert it"):
        locate(str(tmp_path / "v1-5.safetensors"), None)
