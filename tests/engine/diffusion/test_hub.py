"""Where checkpoints are found: directories, and snapshots in the Hub's cache without a network."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import diffusers
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from engine.conditions.featuremodel import resolve
from engine.diffusion.checkpoint import inspect
from engine.diffusion.hub import locate
from engine.errors import ConfigError
from engine.spec.recipe import FeatureSpec, ModelSpec
from tests.support import clips

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


def test_a_hub_that_cannot_be_reached_is_found_out_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of this machine that refuses; the Hub's own library would ask it for half a minute."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="is not in the local cache, and the Hub cannot be reached"):
        locate("owner/name", COMMIT)
    assert time.monotonic() - start < 10


SINGLE = {
    "StableDiffusionPipeline": ("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x"),
    "StableDiffusionXLPipeline": ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.x"),
    "StableDiffusion3Pipeline": ("model.diffusion_model.joint_blocks.0.x", "first_stage_model.x"),
}


@pytest.mark.parametrize("pipeline", SINGLE)
def test_a_single_file_is_refused_with_the_conversion_of_its_own_kind(tmp_path: Path, pipeline: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1) for name in SINGLE[pipeline]}, file)
    hint = f"{pipeline}.from_single_file('{file}').save_pretrained(NEW)"
    with pytest.raises(ConfigError, match="is a file, not a diffusers directory; convert") as caught:
        locate(str(file), None)
    assert hint in str(caught.value)
    assert hasattr(getattr(diffusers, pipeline), "from_single_file")
    with pytest.raises(ConfigError) as caught:  # the folder that it lies in
        inspect(ModelSpec(checkpoint=str(tmp_path)), 8)
    assert hint in str(caught.value)


def test_a_broken_single_file_and_a_lora_get_no_conversion(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="copy or download the file again"):
        locate(str(tmp_path / "v1-5.safetensors"), None)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match="is no whole checkpoint"):
        locate(str(tmp_path / "lora.safetensors"), None)


def test_the_root_of_a_cached_repository_names_the_snapshot_to_give(cache: Path, folders: dict[str, Path]) -> None:
    root = cache / "models--owner--name"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(folders["digits"], snapshot)
    with pytest.raises(ConfigError) as caught:
        inspect(ModelSpec(checkpoint=str(root)), 8)
    assert caught.value.fix == f"name {snapshot}"
    assert inspect(ModelSpec(checkpoint=caught.value.fix.removeprefix("name ")), 8)
    clips.write_clip(cache / "models--owner--clip" / "snapshots" / COMMIT)
    with pytest.raises(ConfigError) as caught:
        resolve(FeatureSpec(backend="transformers", path=str(cache / "models--owner--clip")), None)
    assert resolve(FeatureSpec(backend="transformers", path=caught.value.fix.removeprefix("name ")), None).dim


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_a_pointer_of_git_lfs_says_how_to_fetch_the_file(tmp_path: Path, folders: dict[str, Path], name: str) -> None:
    folder = Path(shutil.copytree(folders["digits"], tmp_path / "model"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265168\n"
    (folder / name).write_text(pointer)
    with pytest.raises(ConfigError, match="is a pointer of Git LFS, not the file itself; run `git lfs install`"):
        inspect(ModelSpec(checkpoint=str(folder)), 8)
    clips.write_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_text(pointer)
    with pytest.raises(ConfigError, match="is a pointer of Git LFS"):
        resolve(FeatureSpec(backend="transformers", path=str(tmp_path / "clip")), None)
