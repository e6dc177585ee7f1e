"""LoRA adapters: checked key by key against the checkpoint before a GPU is used, then attached as its family does it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from engine.diffusion import families, hub, weights
from engine.diffusion.checkpoint import Checkpoint, empty, quiet
from engine.diffusion.families.adapters import Adapters, Content
from engine.diffusion.families.base import Family
from engine.errors import ConfigError

if TYPE_CHECKING:
    import torch

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_REPEATED = re.compile(r"(?:.*\.)?(?:transformer_blocks|attentions|resnets|downsamplers|upsamplers|layers)\.\d+\.")
_UNSUPPORTED = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_")
_OTHER = "use a LoRA that was trained on this checkpoint's family"


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file that fits a checkpoint: how many modules it changes, its largest rank, its numbers, its sha256."""

    path: Path
    denoiser_modules: int
    text_modules: int
    rank: int
    parameters: int
    sha256: str


@dataclass(frozen=True)
class _Pair:
    """The two matrices of a module: `down` (rank, in, ...) and `up` (out, rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor


def check(lora: Path | str, checkpoint: Checkpoint) -> LoraInfo:
    """Refuse, without a GPU, a LoRA that would not be used whole (ConfigError, one line).

    Refused: pickles, broken files, NaN; keys that no module of the denoiser or a text encoder consumes (other families), other
    widths, one of the two matrices missing, some modules of a kind covered and others not, up matrices that are all zero.
    """
    suffix = PurePath(lora).suffix
    if suffix in weights.PICKLED:
        raise ConfigError(str(lora), "is a pickle, which can run code when it is opened", "convert it to .safetensors")
    path = hub.file_here(lora) if suffix == ".safetensors" else Path(lora)
    if suffix != ".safetensors" or not path.is_file():
        raise ConfigError("model.lora", f"{lora} is not a .safetensors file", "name one")
    weights.read_header(path)
    weights.check_finite(path)
    family = families.FAMILIES[checkpoint.family]
    parts = family.adapters.parts
    models = {part: empty(checkpoint.path, part) for part in parts}
    content = _read(path, family, models)
    pairs = {part: _pairs(path, part, content, model) for part, model in models.items()}
    strangers = [key for key in content.tensors if key.partition(".")[0] not in models]
    if strangers:
        what = f"has {len(strangers)} of {len(content.tensors)} keys for other models, such as {strangers[0]}"
        raise ConfigError(str(path), what, _OTHER)
    found = [pair for named in pairs.values() for pair in named.values()]
    if not any(bool(pair.up.any()) for pair in found):
        raise ConfigError(str(path), "changes nothing: every up matrix is zero", "train the LoRA first")
    _dry_run(path, family.adapters, content, models)
    return LoraInfo(
        path=path,
        denoiser_modules=len(pairs[parts[0]]),
        text_modules=sum(len(pairs[part]) for part in parts[1:]),
        rank=max(pair.down.shape[0] for pair in found),
        parameters=sum(pair.down.numel() + pair.up.numel() for pair in found),
        sha256=weights.sha256(path),
    )


def attach(pipeline: Any, lora: Path | str, scale: float, sha256: str = "") -> None:
    """Add the adapter (a path or URL; `sha256` where it is known) at `scale` to the pipeline's denoiser and, if it has parts for them, the text encoders.

    The product is added to the weights, so that sampling costs nothing more; in bfloat16, whose steps can be larger than
    the change, the adapter stays a computation of its own.
    """
    adapters, path = families.of(pipeline).adapters, hub.file_here(lora, sha256)
    with quiet():
        adapters.attach(pipeline, path, scale)
    for part in adapters.parts:
        getattr(pipeline, part).requires_grad_(False)


def _read(path: Path, family: Family, models: dict[str, Any]) -> Content:
    names = weights.read_header(path)
    unsupported = next((key for key in names if any(mark in key for mark in _UNSUPPORTED)), None)
    if unsupported:
        raise ConfigError(
            str(path), f"is not a plain LoRA (it has {unsupported})", "use LoRA without DoRA, LoHa or LoKr"
        )
    try:
        with quiet():
            content = family.adapters.read(path, models)
    except Exception as error:  # the converters of other trainers' formats raise whatever they stumble over
        what = f"is not a {family.name} LoRA that diffusers can read ({' '.join(str(error).split())[:160]})"
        raise ConfigError(str(path), what, _OTHER) from error
    read = len(content.tensors) + len(content.alphas or {})
    if read != len(names):
        raise ConfigError(str(path), f"has {len(names)} keys, of which diffusers reads {read}", _OTHER)
    return content


def _pairs(path: Path, component: str, content: Content, model: Any) -> dict[str, _Pair]:
    """The module pairs of a component, checked against the model's modules."""
    sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in _peft_names(path, component, content, model).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ConfigError(str(path), f"has the key {key} of {component}, which is not LoRA's", _OTHER)
        sides[match["module"]][match["side"]] = tensor
    modules = {name: module.weight for name, module in model.named_modules() if hasattr(module, "weight")}
    unknown = sorted(name for name in sides if name not in modules)
    if unknown:
        what = f"is for another family: the checkpoint's {component} lacks {len(unknown)} of {len(sides)} modules, such as {unknown[0]}"
        raise ConfigError(str(path), what, _OTHER)
    for name, found in sides.items():
        if len(found) < 2:
            what = f"has only one of the two matrices of {component}.{name}: keys are missing"
            raise ConfigError(str(path), what, "copy or train the file again")
    pairs = {name: _Pair(found["A"], found["B"]) for name, found in sides.items()}
    for name, pair in pairs.items():
        _check_shape(path, name, pair, modules[name].shape)
    _check_coverage(path, component, pairs, modules)
    return pairs


def _peft_names(path: Path, component: str, content: Content, model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a component by peft's names, converted as diffusers' loaders do."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    prefix = f"{component}."
    tensors = {key.removeprefix(prefix): value for key, value in content.tensors.items() if key.startswith(prefix)}
    if not tensors:
        return {}
    if not component.startswith("text_encoder"):
        return tensors if "lora_A" in next(iter(tensors)) else convert_unet_state_dict_to_peft(tensors)
    try:
        renamed = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
    except ValueError as error:
        raise ConfigError(str(path), f"has keys of {component} that are not LoRA's ({error})", _OTHER) from error
    old = "" if hasattr(model, "text_model") else "text_model."
    return {key.removeprefix(old): value for key, value in renamed.items()}


def _check_shape(path: Path, name: str, pair: _Pair, shape: tuple[int, ...]) -> None:
    """`shape` is the module's weight: (out, in) of a linear layer, (out, in, height, width) of a convolution."""
    rank, ends = pair.up.shape[1] if pair.up.ndim > 1 else 0, (1,) * (len(shape) - 2)
    down, up = (rank, *shape[1:]), (shape[0], rank, *ends)
    if rank and tuple(pair.down.shape) == down and tuple(pair.up.shape) == up:
        return
    has, wants = (pair.down.shape[1] if pair.down.ndim > 1 else 0), shape[1]
    family = f" ({WIDTHS[has]})" if has in WIDTHS and name.endswith(("attn2.to_k", "attn2.to_v")) else ""
    sizes = (
        f"reads width {has}{family}" if has != wants else f"has shapes {tuple(pair.down.shape)}, {tuple(pair.up.shape)}"
    )
    raise ConfigError(str(path), f"does not fit: its {name} {sizes}, the checkpoint's weight is {tuple(shape)}", _OTHER)


def _check_coverage(path: Path, component: str, pairs: dict[str, _Pair], modules: dict[str, Any]) -> None:
    """Trainers adapt every module of a kind (such as `attn1.to_q`) or none: a part of them means lost keys."""
    wanted = defaultdict(list)
    for name in modules:
        wanted[_REPEATED.sub("", name)].append(name)
    for kind in sorted({_REPEATED.sub("", name) for name in pairs}):
        absent = [name for name in wanted[kind] if name not in pairs]
        if absent:
            what = f"covers {len(wanted[kind]) - len(absent)} of {len(wanted[kind])} {kind} modules of the {component}: {absent[0]} is missing"
            raise ConfigError(str(path), what, "keys were lost: copy or train the file again")


def _dry_run(path: Path, adapters: Adapters, content: Content, models: dict[str, Any]) -> None:
    """Attach to the empty models and count what arrived: the metadata in the file may say other things than its keys."""
    arrived = 0
    for name, model in models.items():
        try:
            with quiet():
                adapters.put(content, name, model)
        except Exception as error:  # peft and diffusers raise many kinds for a configuration that does not fit
            what = f"cannot be attached ({' '.join(str(error).split())[:160]})"
            raise ConfigError(str(path), what, _OTHER) from error
        arrived += sum(".lora_A." in key or ".lora_B." in key for key, _ in model.named_parameters())
    if arrived != len(content.tensors):
        what = f"has {len(content.tensors)} matrices, but its own metadata asks for {arrived}"
        raise ConfigError(str(path), what, "copy or train the file again")
