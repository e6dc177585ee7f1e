"""LoRA files by hand, in every dialect that the engine reads, with the dense change of each module beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Module:
    """A module's matrices and alpha; None: the file names no alpha, which means alpha = rank."""

    part: str
    name: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def dense(self) -> torch.Tensor:
        """alpha / rank x up x down in float64, in the shape of the module's weight."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        alpha = self.rank if self.alpha is None else self.alpha
        return (alpha / self.rank * product).reshape(self.up.shape[0], *self.down.shape[1:])


def modules_of(
    models: dict[str, Any],
    wanted: Callable[[str, str], bool],
    *,
    alphas: Iterable[float | None] = (None,),
    ranks: Iterable[int] = (3,),
) -> list[Module]:
    """Matrices for the linear and convolution layers that are `wanted(part, name)`; alphas and ranks in turn."""
    alphas, ranks = list(alphas), list(ranks)
    generator = torch.Generator().manual_seed(7)
    found: list[Module] = []
    for part, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and wanted(part, name):
                shape, number = module.weight.shape, len(found)
                rank = ranks[number % len(ranks)]
                down = torch.randn(rank, *shape[1:], generator=generator) * 0.2
                up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator) * 0.2
                found.append(Module(part, name, down, up, alphas[number % len(alphas)]))
    return found


def write(
    path: Path,
    modules: list[Module],
    key: Callable[[Module], tuple[str, str, str]],
    metadata: dict[str, Any] | None = None,
) -> Path:
    """`key` gives the names of a module's down matrix, up matrix and alpha."""
    tensors: Tensors = {}
    for module in modules:
        down, up, alpha = key(module)
        tensors |= {down: module.down, up: module.up}
        if module.alpha is not None:
            tensors[alpha] = torch.tensor(module.alpha)
    text = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    save_file(tensors, path, {"format": "pt", **text})
    return path


def peft(module: Module) -> tuple[str, str, str]:
    """`unet.<module>.lora_A.weight`."""
    start = f"{module.part}.{module.name}"
    return f"{start}.lora_A.weight", f"{start}.lora_B.weight", f"{start}.alpha"


def diffusers(module: Module) -> tuple[str, str, str]:
    """`unet.<module>.lora.down.weight`; text encoders `...lora_linear_layer.down.weight`."""
    start = f"{module.part}.{module.name}"
    text = module.part.startswith("text_encoder") and "text_projection" not in module.name
    kind = "lora_linear_layer" if text else "lora"
    return f"{start}.{kind}.down.weight", f"{start}.{kind}.up.weight", f"{start}.alpha"


def old_diffusers(module: Module) -> tuple[str, str, str]:
    """`unet.<attention>.processor.to_q_lora.down.weight`; text encoders `...self_attn.to_q_lora.down.weight` below
    `text_model`."""
    parent, _, last = module.name.removesuffix(".0").rpartition(".")
    if module.part.startswith("text_encoder"):
        last = last.replace("_proj", "").replace("out", "out")
        start = f"{module.part}.text_model.{parent}.to_{last}_lora"
    else:
        start = f"{module.part}.{parent}.processor.{last}_lora"
    return f"{start}.down.weight", f"{start}.up.weight", ""


def kohya(module: Module) -> tuple[str, str, str]:
    """`lora_unet_<module with underscores>.lora_down.weight`, `lora_te_...`."""
    return _kohya(module, module.name, "lora_te")


def kohya_two(module: Module) -> tuple[str, str, str]:
    """The same where there are two text encoders: `lora_te1_...`, `lora_te2_...`."""
    return _kohya(module, module.name, "lora_te2" if module.part == "text_encoder_2" else "lora_te1")


def sgm(module: Module) -> tuple[str, str, str]:
    """As kohya-ss writes SDXL: the U-Net by the names of Stability's own code (two resolutions or more, one layer a
    block or more)."""
    return _kohya(
        module,
        sgm_name(module.name) if module.part == "unet" else module.name,
        "lora_te2" if module.part == "text_encoder_2" else "lora_te1",
    )


def _kohya(module: Module, name: str, text: str) -> tuple[str, str, str]:
    if module.part.startswith("text_encoder"):
        level = "" if name.startswith(("text_model.", "text_projection")) else "text_model."
        start = f"{text}_{level}{name}"
    else:
        start = f"lora_unet_{name}"
    start = start.replace(".", "_")
    return f"{start}.lora_down.weight", f"{start}.lora_up.weight", f"{start}.alpha"


LAYERS = 1  # `layers_per_block` of the tests' own SDXL
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def sgm_name(name: str) -> str:
    """A module of diffusers' U-Net by the names of the original code, after the layout of its `UNetModel`."""
    if name in _OUTER:
        return _OUTER[name]
    block, *rest = name.split(".")
    if block == "mid_block":
        kind, number, *inner = rest
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
    else:
        up, level, kind, number = block == "up_blocks", int(rest[0]), rest[1], int(rest[2])
        inner = rest[3:]
        first = level * (LAYERS + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + LAYERS + 1}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{first + LAYERS}.2.conv"
        start = f"output_blocks.{first + number}" if up else f"input_blocks.{first + number + 1}"
        place = f"{start}.{1 if kind == 'attentions' else 0}"
    tail = ".".join(inner)
    return f"{place}.{_RESNET.get(tail, tail)}"
