"""Models by name: stems and patches for small images, features, weights loaded whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ConfigError, DataError
from engine.spec.classifier import TrainSpec
from engine.training.classifier.models import build, check, features


def made(name: str, size: int, **more: Any) -> Any:
    with torch.device("meta"):
        return build(TrainSpec(model=name, **more), size, 7)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn", 8),
        ("resnet18", 8),
        ("resnet50", 32),
        ("vit_tiny_patch16_224", 32),
        ("deit_small_patch16_224", 224),
        ("convnext_atto", 16),
    ],
)
def test_logits_and_features_have_their_shapes(name: str, size: int) -> None:
    model = made(name, size).eval()
    images = torch.zeros(2, 3, size, size, device="meta")
    assert model(images).shape == (2, 7)
    assert features(model, images).shape[0] == 2
    assert features(model, images).ndim == 2
    check(TrainSpec(model=name), size)


def test_small_images_keep_their_resolution_at_the_stem() -> None:
    small, large = made("resnet18", 32), made("resnet18", 224)
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(small.maxpool, torch.nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert made("vit_tiny_patch16_224", 32).patch_embed.num_patches == 64
    assert made("convnext_atto", 32).stem[0].stride == (1, 1)


def test_features_are_what_the_last_layer_sees() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    for name in ("cnn", "resnet10t"):
        model: Any = build(TrainSpec(model=name), 8, 5).eval()
        last = model.head[-1] if name == "cnn" else model.fc
        with torch.no_grad():
            torch.testing.assert_close(last(features(model, images)), model(images))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model": "resnet_five"}, "timm has no model resnet_five"),
        ({"model": "resnet18", "arguments": {"colour": 3}}, "timm cannot make resnet18"),
        ({"model": "swin_tiny_patch4_window7_224"}, "px images|timm cannot make"),
        ({"model": "cnn", "weights": "/nowhere/x.safetensors"}, "does not exist"),
    ],
)
def test_models_that_cannot_be_are_one_line(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        check(TrainSpec.model_validate(settings), 8)
    assert "\n" not in str(caught.value)


def test_weights_are_loaded_whole_or_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    own = build(TrainSpec(), 8, 7).state_dict()
    path = tmp_path / "own.safetensors"
    save_file(own, path)
    torch.manual_seed(2)
    loaded = build(TrainSpec(weights=str(path)), 8, 7).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())
    with pytest.raises(DataError, match=r"are not this model.s, the first: head\.1"):
        build(TrainSpec(weights=str(path)), 8, 8)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        build(TrainSpec(weights=str(path)), 8, 7)
