"""Checkpoints and LoRA files on an object store: the same identity as on a disk, a copy of its own on every node."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.diffusion import lora
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.errors import ConfigError, MimeoError, StorageError
from engine.spec.recipe import ModelSpec
from engine.storage.store import open_store
from tests.support.buckets import upload
from tests.support.publishers import ROOT

OTHER_NODE = """
import hashlib, pickle, sys
from pathlib import Path
from engine.diffusion import checkpoint
from engine.errors import MimeoError
found = pickle.loads(Path(sys.argv[1]).read_bytes())
try:
    pipeline = checkpoint.load(found, "cpu", "float32")
except MimeoError as error:
    sys.exit(f"{type(error).__name__} {error}")
print(found.path)
print(sum(float(p.double().abs().sum()) for p in pipeline.unet.parameters()))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's cache."""
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A digits checkpoint of one's own."""
    return Path(shutil.copytree(folders["digits"], tmp_path / "own"))


def on_another_node(checkpoint: Checkpoint, folder: Path) -> subprocess.CompletedProcess[str]:
    """Load a checkpoint that has travelled to a process with a cache of its own."""
    (folder / "sent").write_bytes(pickle.dumps(checkpoint))
    env = {**os.environ, "MIMEO_CACHE": str(folder / "node2"), "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", OTHER_NODE, str(folder / "sent")]
    return subprocess.run(code, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


def test_identity_and_weights_are_those_of_the_directory(
    copied: Path, inspected: dict[str, Checkpoint], s3_url: str, cache: Path, tmp_path: Path
) -> None:
    for name in ("unet/old.bin", "whole.ckpt", "whole.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (copied / name).write_bytes(b"not wanted")
    found = inspect(ModelSpec(checkpoint=upload(copied, s3_url) + "/"), 8)
    assert (found.digest, found.files) == (inspected["digits"].digest, inspected["digits"].files)
    assert found.place == s3_url
    assert found.path.is_relative_to(cache)
    fetched = {path.name for path in found.path.rglob("*")}
    assert not fetched & {"old.bin", "whole.ckpt", "whole.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    there = on_another_node(found, tmp_path)
    assert there.returncode == 0, there.stderr
    path, total = there.stdout.split()
    assert Path(path).is_relative_to(tmp_path / "node2")
    here = on_another_node(inspected["digits"], tmp_path).stdout.split()
    assert here == [str(inspected["digits"].path), total]


def test_a_checkpoint_that_changed_on_its_way_is_refused(copied: Path, s3_url: str, tmp_path: Path) -> None:
    found = inspect(ModelSpec(checkpoint=upload(copied, s3_url)), 8)
    store = open_store(s3_url)
    name = "unet/diffusion_pytorch_model.safetensors"
    store.replace(name, store.read(name)[:-4] + b"\0\0\0\0")
    there = on_another_node(found, tmp_path)
    assert there.returncode == 1
    assert there.stderr.startswith("StorageError ")
    assert f"{name}: is not the file that the run began with" in there.stderr


def _pickle(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_pickle, "has no safetensors weights; pickled ones are never downloaded"),
        (lambda folder: (folder / "unet/model.py").write_text("import os"), "is code in a checkpoint"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "vae/config.json").unlink(), "vae/config.json: is missing"),
        (shutil.rmtree, "does not exist or holds no files"),
    ],
)
def test_what_cannot_be_used_is_one_line(spoil: Callable[[Path], None], says: str, copied: Path, s3_url: str) -> None:
    spoil(copied)
    with pytest.raises((ConfigError, StorageError)) as caught:
        inspect(ModelSpec(checkpoint=upload(copied, s3_url)), 8)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="holds a user name or a key") as caught:
        inspect(ModelSpec(checkpoint="s3://key:secret@bucket/model"), 8)
    assert "secret" not in str(caught.value)


def test_a_lora_is_the_same_from_a_store(
    loras: dict[str, Path], inspected: dict[str, Checkpoint], s3_url: str, cache: Path
) -> None:
    file = loras["digits"]
    url = f"{upload(file.parent, s3_url)}/{file.name}"
    found, local = lora.check(url, inspected["digits"]), lora.check(file, inspected["digits"])
    assert (found.sha256, found.denoiser_modules, found.rank) == (local.sha256, local.denoiser_modules, local.rank)
    assert found.path.is_relative_to(cache)
    for bad in (f"{s3_url}/none.safetensors", f"{s3_url}/none.bin", f"{s3_url}/{file.name}.zip"):
        with pytest.raises(MimeoError, match=r"none|zip"):
            lora.check(bad, inspected["digits"])


def test_a_copy_that_was_changed_on_this_node_is_refused(copied: Path, s3_url: str) -> None:
    """Before the driver looks, and between its look and the loading."""
    model = ModelSpec(checkpoint=upload(copied, s3_url))
    found = inspect(model, 8)
    weights = found.path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(StorageError, match=r"unet/.*is not the file that the run began with"):
        load(found, "cpu", "float32")
    with pytest.raises(StorageError, match=r"unet/.*is not what was downloaded; remove .*: it is fetched again"):
        inspect(model, 8)
    shutil.rmtree(found.path.parent)
    assert inspect(model, 8).digest == found.digest
