"""Which files of a diffusers directory are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.diffusion import layout
from engine.errors import ConfigError

STEM = "diffusion_pytorch_model"
REQUIRED = {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sd15"], tmp_path / "sd15"))


def change_index(folder: Path, **entries: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_components_are_those_that_the_index_names(folders: dict[str, Path]) -> None:
    assert layout.read_index(folders["sd15"]).components == REQUIRED
    assert layout.read_index(folders["digits"]).components == REQUIRED | {"image_encoder", "feature_extractor"}


def test_a_published_index_with_a_safety_checker_is_read(copy: Path) -> None:
    change_index(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert layout.read_index(copy).components == REQUIRED


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "text_encoder_2: is missing"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "not for Stable Diffusion"),
        ({"_class_name": ["my_pipeline", "Mine"]}, "not for Stable Diffusion"),
        ({"unet": ["my_unet", "MyUNet"]}, "custom or unknown code"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "diffusers.UNet2DModel as unet"),
        ({"unet": ["diffusers"]}, "custom or unknown code"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "transformers.AutoModel"),
        ({"extra": ["transformers", "CLIPTextModel"]}, "as extra"),
        ({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "FlowMatch"),
        ({"vae": [None, None]}, "vae: is missing"),
    ],
)
def test_other_pipelines_and_classes_are_refused(copy: Path, entries: dict, message: str) -> None:
    change_index(copy, **entries)
    with pytest.raises(ConfigError, match=message):
        layout.read_index(copy)


def test_plain_weights_come_before_half_precision_ones(copy: Path) -> None:
    plain, half = copy / "unet" / f"{STEM}.safetensors", copy / "unet" / f"{STEM}.fp16.safetensors"
    shutil.copy(plain, half)
    assert layout.find_weights(copy, "unet") == layout.Weights(None, (plain,), None)
    plain.unlink()
    assert layout.find_weights(copy, "unet") == layout.Weights("fp16", (half,), None)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickles_alone_are_refused_with_a_way_out(copy: Path, suffix: str) -> None:
    path = copy / "unet" / f"{STEM}.safetensors"
    path.rename(path.with_suffix(suffix))
    with pytest.raises(ConfigError, match=r"pickled weights .*; convert it .*safe_serialization=True"):
        layout.find_weights(copy, "unet")


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/tmp/evil.safetensors", "weights.bin"])
def test_a_shard_index_cannot_lead_elsewhere(copy: Path, name: str) -> None:
    path = copy / "unet" / f"{STEM}.safetensors"
    path.unlink()
    path.with_name(f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigError, match="no safetensors file beside it"):
        layout.find_weights(copy, "unet")


def test_both_kinds_of_tokenizer_are_found_and_a_missing_file_is_named(folders: dict[str, Path], copy: Path) -> None:
    assert {path.name for path in layout.tokenizer_files(folders["digits"])} == {
        "tokenizer_config.json",
        "tokenizer.json",
    }
    assert {path.name for path in layout.tokenizer_files(copy)} == {"tokenizer_config.json", "vocab.json", "merges.txt"}
    (copy / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"merges\.txt: is missing"):
        layout.tokenizer_files(copy)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\udcff", "[" * 100_000])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json: is not"):
        layout.read_json(path)
