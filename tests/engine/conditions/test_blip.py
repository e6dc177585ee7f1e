"""BLIP captions against direct transformers calls, on tiny models with real files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Blip2ForConditionalGeneration, BlipForConditionalGeneration

from engine.conditions.blip import Blip, precheck
from engine.errors import ConfigError
from engine.spec.models import CaptionSpec
from tests.support import clips

MODELS = {
    "blip": (clips.write_blip, BlipForConditionalGeneration),
    "blip-2": (clips.write_blip2, Blip2ForConditionalGeneration),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("blip")
    for name, (write, _) in MODELS.items():
        write(root / name)
    return {name: root / name for name in MODELS}


def spec(folder: Path) -> CaptionSpec:
    return CaptionSpec(kind="blip", path=str(folder), max_new_tokens=5)


def images(count: int, height: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_captions_equal_direct_calls_one_by_one(folders: dict[str, Path], name: str) -> None:
    model = MODELS[name][1].from_pretrained(folders[name]).eval()
    processor = AutoProcessor.from_pretrained(folders[name])
    pixels = images(19)
    expected = []
    for image in pixels:
        inputs = processor(images=image, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        text = processor.decode(tokens, skip_special_tokens=True).removeprefix("[DEC]")
        expected.append(" ".join(text.split()))
    said = Blip(spec(folders[name]))(pixels)
    assert said == expected
    assert len(set(said)) > 1
    assert Blip(spec(folders[name]))(pixels) == said


def test_grey_images_are_captioned_like_their_rgb_form(folders: dict[str, Path]) -> None:
    grey = images(3)[..., 0]
    blip = Blip(spec(folders["blip"]))
    assert blip(grey) == blip(np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("name", MODELS)
def test_precheck_names_weights_and_tokenizer(folders: dict[str, Path], name: str) -> None:
    found = {path.name for path in precheck(spec(folders[name]))}
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json"} <= found


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conditions.caption.path: .*nowhere is not a directory"):
        precheck(spec(tmp_path / "nowhere"))


def broken(folders: dict[str, Path], tmp_path: Path, name: str = "blip") -> Path:
    return Path(shutil.copytree(folders[name], tmp_path / "broken"))


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_pickle_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle only \(pytorch_model.bin\).*safetensors"):
        precheck(spec(folder))


def test_truncated_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        precheck(spec(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model of type 'bert'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
    ],
)
def test_other_models(folders: dict[str, Path], tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = broken(folders, tmp_path)
    set_config(folder, **values)
    with pytest.raises(ConfigError, match=message):
        precheck(spec(folder))


def test_old_blip2_export(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path, "blip-2")
    set_config(folder, image_token_index=None)
    with pytest.raises(ConfigError, match="image_token_index"):
        precheck(spec(folder))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("processor_config.json", "no preprocessor"),
        ("tokenizer.json", "no tokenizer"),
        ("config.json", "no config.json"),
    ],
)
def test_missing_files(folders: dict[str, Path], tmp_path: Path, removed: str, message: str) -> None:
    folder = broken(folders, tmp_path)
    (folder / removed).unlink()
    with pytest.raises(ConfigError, match=message):
        precheck(spec(folder))


def test_weights_of_another_variant(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    shutil.copy(folders["blip-2"] / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks weights|cannot be loaded"):
        Blip(spec(folder))
