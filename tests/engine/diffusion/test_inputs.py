"""U-Nets and transformers with inputs that nobody feeds: refused by their configuration, and by their weights alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.diffusion import inputs, layout
from engine.diffusion.checkpoint import empty, inspect
from engine.diffusion.families.sd import StableDiffusion
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
from tests.support.checkpoints import write_checkpoint
from tests.support.families import write_family

WRITE = {"sd": lambda folder: write_checkpoint(folder, "digits"), "xl": lambda folder: write_family(folder, "xl")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {kind: write(root / kind) for kind, write in WRITE.items()}


def changed(source: Path, folder: Path, **settings: Any) -> Path:
    """The same directory with another U-Net, its weights whole."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    UNet2DConditionModel(**known | settings).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize(
    "settings",
    [
        {"time_cond_proj_dim": 16},
        {"class_embed_type": "timestep"},
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 68},
        {"num_class_embeds": 10},
        {"addition_embed_type": "image", "encoder_hid_dim": 64},
        {"encoder_hid_dim": 64, "encoder_hid_dim_type": "image_proj"},
        {"encoder_hid_dim": 64, "encoder_hid_dim_type": "text_image_proj"},
    ],
    ids=str,
)
def test_a_unet_with_further_inputs_is_refused_in_one_line(
    written: dict[str, Path], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    folder = changed(written[kind], tmp_path / kind, **settings)
    with pytest.raises(
        ConfigError, match=r"unet: needs inputs that .* does not have \(\w+\); use a .* checkpoint"
    ) as caught:
        inspect(ModelSpec(checkpoint=str(folder)), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"time_cond_proj_dim": 16},
            "has 1 weights for inputs that .* does not have, such as time_embedding.cond_proj",
        ),
        ({"class_embed_type": "timestep"}, r"does not run on the inputs of .* \(class_labels should be provided"),
        ({"num_class_embeds": 10}, "does not run on the inputs of"),
        ({"addition_embed_type": "text_image", "encoder_hid_dim": 64}, "does not run on the inputs of"),
    ],
)
def test_it_is_refused_whatever_the_settings_are_called(
    written: dict[str, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """By running it without numbers, so that a setting of tomorrow is found too."""
    folder = changed(written["sd"], tmp_path / "sd", **settings)
    with pytest.raises(ConfigError, match=message) as caught:
        inputs.check(folder / "unet", layout.read_index(folder).family, empty(folder, "unet"))
    assert "\n" not in str(caught.value)


def test_weights_that_change_nothing_are_refused_when_a_directory_is_inspected(
    written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.diffusion.families.checks.UNET_INPUTS", ())
    folder = changed(written["sd"], tmp_path / "sd", time_cond_proj_dim=16)
    with pytest.raises(ConfigError, match=r"unet: has 1 weights for inputs .* time_embedding\.cond_proj\.weight"):
        inspect(ModelSpec(checkpoint=str(folder)), 8)


@pytest.mark.parametrize(
    "settings", [{"mid_block_type": None}, {"only_cross_attention": True}, {"sample_size": None}], ids=str
)
def test_other_shapes_are_no_further_inputs(written: dict[str, Path], settings: dict[str, Any]) -> None:
    config = json.loads((written["sd"] / "unet" / "config.json").read_text())
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        inputs.check(Path("unet"), StableDiffusion(), UNet2DConditionModel(**known | settings))
