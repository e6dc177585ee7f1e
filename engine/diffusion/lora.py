"""LoRA adapters: checked key by key against the checkpoint before a GPU is used, then attached by diffusers and peft."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion import layout, weights
from engine.diffusion.checkpoint import Checkpoint, quiet
from engine.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

ADAPTER = "mimeo"
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_REPEATED = re.compile(r".*\.(?:transformer_blocks|attentions|resnets|downsamplers|upsamplers|layers)\.\d+\.")
_UNSUPPORTED = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_")
_LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
_OTHER = "use a LoRA that was trained on this checkpoint's family"


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file that fits a checkpoint: how many modules it changes, its largest rank, its numbers, its sha256."""

    path: Path
    unet_modules: int
    text_modules: int
    rank: int
    parameters: int
    sha256: str


@dataclass(frozen=True)
class _Pair:
    """The two matrices of a module: `down` (rank, in, ...) and `up` (out, rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True)
class _Content:
    """What diffusers reads in a file: tensors by its own names, alphas, and the metadata that peft wrote."""

    tensors: dict[str, torch.Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None


def check(lora: Path | str, checkpoint: Checkpoint) -> LoraInfo:
    """Refuse, without a GPU, a LoRA that would not be used whole (ConfigError, one line).

    Refused: pickles, broken files, NaN; keys that no module of the U-Net or text encoder consumes (other families), other
    widths, one of the two matrices missing, some modules of a kind covered and others not, up matrices that are all zero.
    """
    path = Path(lora).expanduser()
    if path.suffix in weights.PICKLED:
        raise ConfigError(str(path), "is a pickle, which can run code when it is opened", "convert it to .safetensors")
    if path.suffix != ".safetensors" or not path.is_file():
        raise ConfigError("model.lora", f"{path} is not a .safetensors file", "name one")
    weights.read_header(path)
    weights.check_finite(path)
    content = _read(path)
    models = _empty_models(checkpoint)
    pairs = {name: _pairs(path, name, content, model) for name, model in models.items()}
    strangers = [key for key in content.tensors if key.partition(".")[0] not in models]
    if strangers:
        what = f"has {len(strangers)} of {len(content.tensors)} keys for other models, such as {strangers[0]}"
        raise ConfigError(str(path), what, _OTHER)
    found = [pair for named in pairs.values() for pair in named.values()]
    if not any(bool(pair.up.any()) for pair in found):
        raise ConfigError(str(path), "changes nothing: every up matrix is zero", "train the LoRA first")
    _dry_run(path, content, models)
    return LoraInfo(
        path=path,
        unet_modules=len(pairs["unet"]),
        text_modules=len(pairs["text_encoder"]),
        rank=max(pair.down.shape[0] for pair in found),
        parameters=sum(pair.down.numel() + pair.up.numel() for pair in found),
        sha256=weights.sha256(path),
    )


def attach(pipeline: StableDiffusionPipeline, lora: Path | str, scale: float) -> None:
    """Add the adapter at `scale` to the pipeline's U-Net and, if it has a part for it, the text encoder.

    The product is added to the weights, so that sampling costs nothing more; in bfloat16, whose steps can be larger than
    the change, the adapter stays a computation of its own.
    """
    import torch

    path = Path(lora).expanduser()
    with quiet():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER, **_LOCAL)
        if pipeline.unet.dtype == torch.bfloat16:
            pipeline.set_adapters([ADAPTER], [scale])
        else:
            pipeline.fuse_lora(components=list(pipeline.get_list_adapters()), lora_scale=scale)
            pipeline.unload_lora_weights()
    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)


def _read(path: Path) -> _Content:
    from diffusers import StableDiffusionPipeline

    names = weights.read_header(path)
    unsupported = next((key for key in names if any(mark in key for mark in _UNSUPPORTED)), None)
    if unsupported:
        raise ConfigError(
            str(path), f"is not a plain LoRA (it has {unsupported})", "use LoRA without DoRA, LoHa or LoKr"
        )
    try:
        with quiet():
            tensors, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
                str(path.parent), weight_name=path.name, return_lora_metadata=True, **_LOCAL
            )
    except Exception as error:  # the converters of other trainers' formats raise whatever they stumble over
        what = f"is not a Stable Diffusion LoRA that diffusers can read ({' '.join(str(error).split())[:160]})"
        raise ConfigError(str(path), what, _OTHER) from error
    if len(tensors) + len(alphas or {}) != len(names):
        what = f"has {len(names)} keys, of which diffusers reads {len(tensors) + len(alphas or {})}"
        raise ConfigError(str(path), what, _OTHER)
    return _Content(tensors, alphas, metadata)


def _empty_models(checkpoint: Checkpoint) -> dict[str, Any]:
    """The U-Net and the text encoder without numbers, on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = layout.read_json(checkpoint.path / "unet" / "config.json")
    text_config = CLIPTextConfig.from_dict(layout.read_json(checkpoint.path / "text_encoder" / "config.json"))
    with quiet(), torch.device("meta"):
        return {"unet": UNet2DConditionModel.from_config(config), "text_encoder": CLIPTextModel(text_config)}


def _pairs(path: Path, component: str, content: _Content, model: Any) -> dict[str, _Pair]:
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


def _peft_names(path: Path, component: str, content: _Content, model: Any) -> dict[str, torch.Tensor]:
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
    if component == "unet":
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


def _dry_run(path: Path, content: _Content, models: dict[str, Any]) -> None:
    """Attach to the empty models and count what arrived: the metadata in the file may say other things than its keys."""
    from diffusers import StableDiffusionPipeline

    loaders = {
        "unet": StableDiffusionPipeline.load_lora_into_unet,
        "text_encoder": StableDiffusionPipeline.load_lora_into_text_encoder,
    }
    arrived = 0
    for name, model in models.items():
        try:
            with quiet():
                loaders[name](
                    dict(content.tensors),
                    content.alphas,
                    model,
                    adapter_name=ADAPTER,
                    metadata=content.metadata,
                    low_cpu_mem_usage=True,
                )
        except Exception as error:  # peft and diffusers raise many kinds for a configuration that does not fit
            what = f"cannot be attached ({' '.join(str(error).split())[:160]})"
            raise ConfigError(str(path), what, _OTHER) from error
        arrived += sum(".lora_A." in key or ".lora_B." in key for key, _ in model.named_parameters())
    if arrived != len(content.tensors):
        what = f"has {len(content.tensors)} matrices, but its own metadata asks for {arrived}"
        raise ConfigError(str(path), what, "copy or train the file again")
