"""A directory of each other family, written and checked once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from engine.diffusion import checkpoint
from engine.diffusion.checkpoint import Checkpoint
from engine.spec.recipe import ModelSpec
from engine.storage.origin import owned
from tests.support.families import SIZE, WRITERS, write_family


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """xl, sd3, sd3_t5, dit, pixel, pixel_plain."""
    root = tmp_path_factory.mktemp("families")
    return {kind: write_family(root / kind, kind) for kind in WRITERS}


@pytest.fixture(scope="session")
def checked(family_folders: dict[str, Path]) -> dict[str, Checkpoint]:
    """The same, inspected at the size that they are made for."""
    return {
        kind: checkpoint.inspect(ModelSpec(checkpoint=str(folder)), SIZE) for kind, folder in family_folders.items()
    }


@pytest.fixture(scope="session")
def stock(family_folders: dict[str, Path]) -> Callable[[str], Any]:
    """A family's pipeline as a user of diffusers opens it, afresh each time."""

    def open_pipeline(kind: str) -> Any:
        pixels = dict.fromkeys(("pixel", "pixel_plain"), "ConsistencyModelPipeline") | {"pixel_flow": "DDPMPipeline"}
        names = {"xl": "StableDiffusionXLPipeline", "dit": "DiTPipeline"} | pixels
        more = {"xl": {"add_watermarker": False}, "sd3": {"text_encoder_3": None, "tokenizer_3": None}}
        loader = getattr(diffusers, names.get(kind, "StableDiffusion3Pipeline"))
        pipeline = loader.from_pretrained(family_folders[kind], **more.get(kind, {}))
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():  # the place of numbers in memory decides their last bits on a CPU
            if isinstance(part, torch.nn.Module):
                owned(part)
        return pipeline

    return open_pipeline


@pytest.fixture(scope="session")
def all_checked(checked: dict[str, Checkpoint], inspected: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Every family: digits, sd15 and sd21 beside the others."""
    return checked | inspected
