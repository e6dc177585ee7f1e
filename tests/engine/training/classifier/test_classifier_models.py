"""Models by name: stems and patches for small images, features, weights loaded whole or refused."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ConfigError, DataError
from engine.spec.classifier import TrainSpec
from engine.training.classifier.classifier_models import build, check, features


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
        (
            {"model": "resnet18", "arguments": {"colour": 3}},
            "resnet18 takes no argument colour; its class ResNet takes",
        ),
        ({"model": "swin_tiny_patch4_window7_224"}, "px images|timm cannot make"),
        ({"model": "cnn", "weights": "/nowhere/x.safetensors"}, "does not exist"),
    ],
)
def test_models_that_cannot_be_are_one_line(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        check(TrainSpec.model_validate(settings), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "evil.pth"},
        {"checkpoint_path": "/nowhere"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "evil.pth"}},
        {"pretrained_cfg_overlay": {"file": "evil.pth"}, "pretrained": True},
        {"cache_dir": "/tmp/x"},
        {"pretrained_strict": False},
        {"features_only": True},
        {"pruned": True},
        {"num_classes": 5},
        {"drop_path": 0.1},
    ],
)
def test_timm_opens_no_file_and_no_address(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle that would run code lies where the arguments point."""
    monkeypatch.chdir(tmp_path)
    torch.save(_Evil(tmp_path / "ran"), tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="takes no argument") as caught:
        check(TrainSpec(model="resnet18", arguments=arguments), 32)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="takes no argument"):
        build(TrainSpec(model="resnet18", arguments=arguments), 32, 5)
    assert not (tmp_path / "ran").exists()


class _Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._mark,))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"drop_path_rate": 0.1, "zero_init_last": False}),
        ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 2, "qkv_bias": False}),
        ("convnext_atto", {"depths": [1, 1, 2, 1], "ls_init_value": 1e-6}),
        ("efficientnet_b0", {"drop_rate": 0.2}),
    ],
)
def test_arguments_of_the_model_pass(name: str, arguments: dict[str, Any]) -> None:
    check(TrainSpec(model=name, arguments=arguments), 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 10**7}, "train.arguments.depth: 1e\\+07 is more than any model has"),
        ({"embed_dim": 10**9}, "train.arguments.embed_dim"),
        ({"embed_dim": 65_000, "num_heads": 1, "depth": 24}, "parameters; ask for a smaller model"),
        ({"patch_size": "big"}, "timm cannot make"),
    ],
)
def test_absurd_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        check(TrainSpec(model="vit_tiny_patch16_224", arguments=arguments), 32)
    assert time.monotonic() - start < 10


def test_weights_are_checked_before_the_run(tmp_path: Path) -> None:
    """Those of another number of classes are found as soon as that is known."""
    path = tmp_path / "own.safetensors"
    state = build(TrainSpec(), 8, 7).state_dict()
    save_file(state, path)
    check(TrainSpec(weights=str(path)), 8)
    check(TrainSpec(weights=str(path)), 8, 7)
    refused = {
        r"not this model.s, the first: head\.1": (lambda: save_file(state, path), 8),
        r"not this model.s": (
            lambda: save_file({name: value for name, value in state.items() if "head" not in name}, path),
            7,
        ),
        r"NaN or infinite": (lambda: save_file(state | {"head.1.bias": torch.full((7,), torch.nan)}, path), 7),
        r"not a whole safetensors file": (lambda: torch.save(_Evil(tmp_path / "ran"), path), 7),
        r"not a regular file": (lambda: (path.unlink(), os.mkfifo(path)), 7),
    }
    for message, (make, classes) in refused.items():
        make()
        start = time.monotonic()
        with pytest.raises(ConfigError, match=message) as caught:
            check(TrainSpec(weights=str(path)), 8, classes)
        assert time.monotonic() - start < 5
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


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
