"""Classifiers by name: timm's models, fitted to images of 8 to 512 pixels, and the judge's small CNN."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import regular
from engine.diffusion import weights
from engine.errors import ConfigError, DataError
from engine.spec.classifier import TrainSpec
from engine.training.judge_model import Judge

SMALL = 64
TOKENS = 8  # a transformer sees a small image as about 8 x 8 patches
MOST = 65_536  # of any number among the arguments
MOST_LAYERS = 1_024
MOST_PARAMETERS = 2**34
DEPTH_STRIDE = 8  # what ConvNeXt's stages after the stem divide the side by


def build(spec: TrainSpec, size: int, classes: int) -> nn.Module:
    """A classifier of (B, 3, size, size) float32 in [-1, 1] to (B, classes) logits, with weights from torch's current
    seed.

    At 64 px or less a ResNet gets a 3x3 stem of stride 1 without pooling, a ViT patches that leave about 8 x 8 tokens,
    a ConvNeXt a smaller stem. `train.arguments` go to timm and win. Nothing is downloaded. Raises ConfigError for a
    model or arguments that timm does not know, and for an image that is too small; DataError for weights that do not
    fit.
    """
    model = _bare(spec, size, classes)
    if spec.weights is not None:
        _load(model, Path(spec.weights))
    return model


def _bare(spec: TrainSpec, size: int, classes: int) -> nn.Module:
    return Judge(size, classes, spec.width) if spec.model == "cnn" else _timm(spec, size, classes)


def check(spec: TrainSpec, size: int, classes: int | None = None) -> None:
    """Find out without memory or time whether `build` will work, weights included (ConfigError, one line).

    As long as the number of classes is not known (None), the weights' tensors that depend on it are not compared.
    """
    _check_numbers(spec.arguments)
    with torch.device("meta"):
        model, other = (_bare(spec, size, classes or count) for count in (2, 3))
        try:
            model.eval()(torch.zeros(1, 3, size, size))
        except Exception as error:  # whatever odd arguments lead a model of timm to
            what = f"{spec.model} cannot take {size} px images ({_line(error)})"
            raise ConfigError("train.model", what, "set train.size, train.arguments or another model") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ConfigError("train.arguments", f"give {spec.model} {count:,} parameters", "ask for a smaller model")
    if spec.weights is not None:
        _check_weights(Path(spec.weights), model, other)


def _check_numbers(arguments: Mapping[str, object], key: str = "") -> None:
    """Refuse giant numbers and lists, which would be built layer by layer (ConfigError)."""
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        most = MOST_LAYERS if "depth" in name or "layers" in name else MOST
        giants = [number for number in values if isinstance(number, int | float) and not -most <= number <= most]
        if len(values) > MOST_LAYERS or giants:
            fault = f"{giants[0]:g}" if giants else f"{len(values)} entries"
            raise ConfigError(f"train.arguments.{key}{name}", f"{fault} is more than any model has", "correct it")
        if isinstance(value, dict):
            _check_numbers(value, f"{key}{name}.")


def _check_weights(path: Path, model: nn.Module, other: nn.Module) -> None:
    """The file is whole, finite and this model's; tensors that differ between `model` and `other` may have any
    shape."""
    if not path.exists():
        raise ConfigError("train.weights", f"{path} does not exist", "give a .safetensors file")
    found = {name: tensor.shape for name, tensor in weights.read_header(path).items()}
    own, free = _shapes(model), _shapes(other)
    wrong = sorted(
        name
        for name in own.keys() | found.keys()
        if name not in own or name not in found or (own[name] != found[name] and own[name] == free[name])
    )
    if wrong:
        raise ConfigError(f"train.weights: {path}", *_misfit(wrong, len(found)))
    weights.check_finite(path)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfit(wrong: list[str], count: int) -> tuple[str, str]:
    what = f"{len(wrong)} of its {count} tensors are not this model's, the first: {wrong[0]}"
    return what, "give weights of the same model, classes and image size"


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


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
    fitted = {"pretrained": False, "num_classes": classes} | _fitted(family, size)
    if spec.arguments:
        with torch.device("meta"):
            _check_arguments(spec, type(timm.create_model(spec.model, **fitted)))
    try:
        model: Any = timm.create_model(spec.model, **fitted | spec.arguments)
    except Exception as error:  # timm's models raise whatever odd arguments lead to
        what = f"timm cannot make {spec.model} with {spec.arguments} ({_line(error)})"
        raise ConfigError("train.arguments", what, "correct the arguments") from None
    if family == "resnet" and size <= SMALL and isinstance(getattr(model, "conv1", None), nn.Conv2d):
        _small_stem(model)
    return model


def _check_arguments(spec: TrainSpec, kind: type) -> None:
    """Let through what the model's own class takes, nothing of timm's loaders, which open files and the network
    (ConfigError)."""
    import timm

    taken = {name for base in kind.__mro__ for name in inspect.signature(base).parameters if base is not object}
    loaders = (timm.create_model, timm.models.build_model_with_cfg)
    refused = {name for loader in loaders for name in inspect.signature(loader).parameters}
    allowed = sorted(taken - refused - {"self", "args", "kwargs", "num_classes"})
    strange = [name for name in spec.arguments if name not in allowed]
    if strange:
        near = difflib.get_close_matches(strange[0], allowed, n=3) or allowed[:12]
        what = f"{spec.model} takes no argument {strange[0]}"
        raise ConfigError("train.arguments", what, f"its class {kind.__name__} takes {', '.join(near)}")


def _fitted(family: str, size: int) -> dict[str, int]:
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
        regular.check(path)
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(str(path), f"cannot be read ({_line(error)})", "give a whole .safetensors file") from None
    own = model.state_dict()
    wrong = sorted(
        name
        for name in own.keys() | found.keys()
        if name not in own or name not in found or own[name].shape != found[name].shape
    )
    if wrong:
        raise DataError(str(path), *_misfit(wrong, len(found)))
    model.load_state_dict(found)
