"""LoRA adapters: checked key by key against the checkpoint before a GPU is used, then added to the weights by peft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from engine.diffusion import families, hub, lorafile, weights
from engine.diffusion.checkpoint import Checkpoint, empty, quiet
from engine.diffusion.lorafile import Change
from engine.errors import ConfigError

ADAPTER = "mimeo"


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file that fits a checkpoint: how many modules it changes, its largest rank, its numbers, its sha256."""

    path: Path
    denoiser_modules: int
    text_modules: int
    rank: int
    parameters: int
    sha256: str


def check(lora: Path | str, checkpoint: Checkpoint) -> LoraInfo:
    """Refuse, without a GPU, a LoRA that would not be used whole and exactly (ConfigError, one line).

    Refused: pickles, broken files, NaN; keys that no module of the denoiser or a text encoder consumes (other
    families), other widths, one of the two matrices missing, modules missing that the metadata or the other blocks
    have, changes that are not alpha / rank x up x down (DoRA, PiSSA), alphas of 0, up matrices that are all zero.
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
    with quiet():
        changes = lorafile.read(path, family, {part: empty(checkpoint.path, part) for part in parts})
    found = [change for named in changes.values() for change in named.values()]
    if not any(bool(change.up.any()) for change in found):
        raise ConfigError(str(path), "changes nothing: every up matrix is zero", "train the LoRA first")
    return LoraInfo(
        path=path,
        denoiser_modules=len(changes[parts[0]]),
        text_modules=sum(len(changes[part]) for part in parts[1:]),
        rank=max(change.rank for change in found),
        parameters=sum(change.down.numel() + change.up.numel() for change in found),
        sha256=weights.sha256(path),
    )


def attach(pipeline: Any, lora: Path | str, scale: float, sha256: str = "") -> None:
    """Add the adapter (a path or URL; `sha256` where it is known) at `scale` to the pipeline's denoiser and, if it has
    parts for them, the text encoders.

    The product is added to the weights, so that sampling costs nothing more; in bfloat16, whose steps can be larger
    than the change, the adapter stays a computation of its own.
    """
    import torch

    family, path = families.of(pipeline), hub.file_here(lora, sha256)
    models = {part: getattr(pipeline, part) for part in family.adapters.parts}
    merge = models[family.denoiser].dtype != torch.bfloat16
    with quiet():
        changes = lorafile.read(path, family, models)
        for part, model in models.items():
            if changes[part]:
                _put(model, changes[part], scale, merge)
            model.requires_grad_(False)


def _put(model: Any, changes: dict[str, Change], scale: float, merge: bool) -> None:
    """Peft's layers around the modules, each with the file's own matrices and factor; then the sum, if it is wanted."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    keys = {f"{name}.lora_A.weight": change.down for name, change in changes.items()}
    config = LoraConfig(
        r=1, target_modules=list(changes)
    )  # the rank of each module is that of its matrices, put in below
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True, state_dict=keys)
    for name, change in changes.items():
        layer = model.get_submodule(name)
        weight = layer.get_base_layer().weight
        for side, matrix in ((layer.lora_A, change.down), (layer.lora_B, change.up)):
            side[ADAPTER].weight = nn.Parameter(matrix.to(weight.device, weight.dtype))
        layer.r[ADAPTER], layer.lora_alpha[ADAPTER] = change.rank, change.scale * change.rank
        layer.scaling[ADAPTER] = change.scale * scale
        if merge:
            layer.merge()
    if merge:
        recurse_remove_peft_layers(model)
        del model.peft_config
