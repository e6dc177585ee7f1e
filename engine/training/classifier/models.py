"""Classifiers by name: timm's models, fitted to images of 8 to 512 pixels, and the judge's small CNN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigError, DataError
from engine.spec.classifier import TrainSpec
from engine.training.judge_model import Judge

SMALL = 64
TOKENS = 8  # a transformer sees a small image as about 8 x 8 patches
DEPTH_STRIDE = 8  # what ConvNeXt's stages after the stem divide the side by


def build(spec: TrainSpec, size: int, classes: int) -> nn.Module:
    """A classifier of (B, 3, size, size) float32 in [-1, 1] to (B, classes) logits, with weights from torch's current seed.

    At 64 px or less a ResNet gets a 3x3 stem of stride 1 without pooling, a ViT patches that leave about 8 x 8 tokens, a
    ConvNeXt a smaller stem. `train.arguments` go to timm and win. Nothing is downloaded. Raises ConfigError for a model or
    arguments that timm does not know, and for an image that is too small; DataError for weights that do not fit.
    """
    if spec.model == "cnn":
        model: nn.Module = Judge(size, classes, spec.width)
    else:
        model = _timm(spec, size, classes)
    if spec.weights is not None:
        _load(model, Path(spec.weights))
    return model


def check(spec: TrainSpec, size: int, classes: int = 2) -> None:
    """Find out without memory or time whether `build` will work (ConfigError); weights are only looked for."""
    if spec.weights is not None and not Path(spec.weights).is_file():
        raise ConfigError("train.weights", f"{spec.weights} does not exist", "give a .safetensors file")
    with torch.device("meta"):
        model = build(spec.model_copy(update={"weights": None}), size, classes).eval()
        try:
            model(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            what = f"{spec.model} cannot take {size} px images ({str(error).splitlines()[0]})"
            raise ConfigError("train.model", what, "set train.size, train.arguments or another model") from None


def features(model: nn.Module, images: Tensor) -> Tensor:
    """(B, D): what the last linear layer sees."""
    if isinstance(model, Judge):
        return model.features(images).mean(dim=(2, 3))
    inner: Any = model
    return inner.forward_head(inner.forward_features(images), pre_logits=True)


def _timm(spec: TrainSpec, size: int, classes: int) -> nn.Module:
    import timm
    from timm.models import model_entrypoint

    if not timm.is_model(spec.model):
        near = timm.list_models(f"*{spec.model.split('_')[0]}*")[:3]
        fix = f"did you mean {', '.join(near)}?" if near else "use cnn or a name that timm.list_models() gives"
        raise ConfigError("train.model", f"timm has no model {spec.model}", fix)
    family = model_entrypoint(spec.model).__module__.rpartition(".")[2]
    arguments = _fitted(family, size) | spec.arguments
    try:
        model: Any = timm.create_model(spec.model, pretrained=False, num_classes=classes, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        what = f"timm cannot make {spec.model} with {arguments} ({str(error).splitlines()[0]})"
        raise ConfigError("train.arguments", what, "correct the arguments") from None
    if family == "resnet" and size <= SMALL and isinstance(getattr(model, "conv1", None), nn.Conv2d):
        _small_stem(model)
    return model


def _fitted(family: str, size: int) -> dict[str, Any]:
    if family in ("vision_transformer", "deit"):
        return {"img_size": size} | ({"patch_size": max(1, size // TOKENS)} if size <= SMALL else {})
    if family == "convnext" and size <= SMALL:
        return {"patch_size": max(1, size // (4 * DEPTH_STRIDE))}
    return {}


def _small_stem(model: Any) -> None:
    """The CIFAR form of He et al. 2016, section 4.2: no early down-sampling."""
    channels = model.conv1.out_channels
    model.conv1 = nn.Conv2d(3, channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _load(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            str(path), f"cannot be read ({str(error).splitlines()[0]})", "give a whole .safetensors file"
        ) from None
    own = model.state_dict()
    wrong = sorted(
        name
        for name in own.keys() | found.keys()
        if name not in own or name not in found or own[name].shape != found[name].shape
    )
    if wrong:
        what = f"{len(wrong)} of its {len(found)} tensors are not this model's, the first: {wrong[0]}"
        raise DataError(str(path), what, "give weights of the same model, classes and image size")
    model.load_state_dict(found)
