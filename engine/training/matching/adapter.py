"""What a fine-tune changes in a denoiser: LoRA matrices put in by peft, or all of its weights; and how both are
written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.diffusion import hub
from engine.diffusion.checkpoint import Checkpoint, empty, quiet
from engine.diffusion.families import FAMILIES
from engine.diffusion.families.family import Family
from engine.errors import ConfigError
from engine.seeds import derive
from engine.spec.training import MatchSpec
from engine.training.matching.matching_precheck import WEIGHTS

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
CONV = ("conv1", "conv2", "proj_in", "proj_out")
PRESETS = {"attention": ATTENTION, "conv": CONV, "attention+conv": ATTENTION + CONV}


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that a checked directory belongs to."""
    return FAMILIES[checkpoint.family]


def check_targets(checkpoint: Checkpoint, match: MatchSpec) -> None:
    """Refuse targets that the checkpoint's denoiser does not have (ConfigError), from its configuration alone."""
    if match.adapter == "lora":
        targets_of(empty(checkpoint.path, family_of(checkpoint).denoiser), match)


def targets_of(denoiser: nn.Module, match: MatchSpec) -> list[str]:
    """The names of the modules that get a LoRA: those of a preset that the denoiser has, or the recipe's own, all of
    them.

    Raises ConfigError where a name of the recipe's own fits nothing, or a preset nothing at all.
    """
    kinds = (nn.Linear, nn.Conv2d)
    names = [name for name, module in denoiser.named_modules() if isinstance(module, kinds)]

    def fits(target: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for name in names)

    asked = PRESETS[match.targets] if isinstance(match.targets, str) else match.targets
    known = [target for target in asked if fits(target)]
    unknown = [target for target in asked if target not in known]
    if not known or (unknown and not isinstance(match.targets, str)):
        what = f"the model has no linear or convolution layer named {' or '.join(unknown)}"
        last = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
        raise ConfigError("match.targets", what, f"it has {', '.join(last[:24])}")
    return known


def attach(denoiser: Any, match: MatchSpec, seed: int) -> nn.Module:
    """Make the denoiser trainable: its LoRA (first weights decided by the seed), in float32, or all of it.

    Frozen weights stay in the dtype that they have. Returns the denoiser.
    """
    denoiser.requires_grad_(False)
    if match.adapter == "full":
        return denoiser.requires_grad_(True)
    from peft import LoraConfig, inject_adapter_in_model

    alpha = match.rank if match.alpha is None else match.alpha
    config = LoraConfig(
        r=match.rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets_of(denoiser, match)
    )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(derive(seed, "match", "weights"))
        inject_adapter_in_model(config, denoiser)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return denoiser


def trained(denoiser: nn.Module) -> list[nn.Parameter]:
    """The parameters that the fine-tune changes."""
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def save(folder: Path, denoiser: Any, match: MatchSpec, checkpoint: Checkpoint, family: Family) -> None:
    """Write the LoRA as the file that stock diffusers loads, or the checkpoint's used files with what has changed."""
    if match.adapter == "lora":
        family.save_lora(folder, WEIGHTS, denoiser)
        return
    changed = family.save_whole(folder, denoiser)
    for name in _files(checkpoint.path, changed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.path / name, folder / name)


def _files(folder: Path, changed: tuple[str, ...]) -> list[str]:
    """What a directory's own loaders use, but what has changed: no pickles, no code, nothing that merely lies there."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    plain = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
    return [name for name in hub.used(plain) if Path(name).parts[0] not in changed]
