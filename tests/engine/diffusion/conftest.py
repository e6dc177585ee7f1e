"""Random-weight checkpoints that the tests of this folder share, written once a session; copy before changing one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.diffusion import checkpoint
from engine.diffusion.checkpoint import Checkpoint
from engine.spec.recipe import ModelSpec
from tests.support.checkpoints import FAMILIES, write_checkpoint, write_lora

SIZES = {"digits": 8, "sd15": 64, "sd21": 64}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory a family: digits, sd15, sd21."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def inspected(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    """The checked checkpoint of each family at the size that it is made for."""
    return {
        name: checkpoint.inspect(ModelSpec(checkpoint=str(folder)), SIZES[name]) for name, folder in folders.items()
    }


@pytest.fixture(scope="session")
def loras(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA of U-Net and text encoder for each family."""
    root = tmp_path_factory.mktemp("loras")
    return {name: write_lora(root / name, folder, text=True) for name, folder in folders.items()}


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """`edit(file, change)` rewrites a safetensors file with the tensors that `change` gets and alters, beside no
    other."""

    def rewrite(source: Path, change: Callable[[dict], None], name: str = "edited.safetensors") -> Path:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(source, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(source)
        change(tensors)
        save_file(tensors, tmp_path / name, metadata)
        return tmp_path / name

    return rewrite
