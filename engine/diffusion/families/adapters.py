"""Where a family's LoRA files say what: which components they may change, how their keys are read, how a new file is
written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by the reader's own names, alphas, and the metadata that peft wrote."""

    tensors: dict[str, torch.Tensor]
    alphas: dict[str, float]
    metadata: Mapping[str, Any]


class Adapters(Protocol):
    """`parts`: the components that a LoRA may change, the denoiser first."""

    parts: tuple[str, ...]

    def read(self, path: Path, models: Mapping[str, Any]) -> Content:
        """The content of a file; `models` are the components, with or without numbers. Raises whatever converters
        stumble over."""

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """Write the adapter `default` that peft has put into the denoiser; its alpha goes into the weights."""


class Stock:
    """The reader of a stock pipeline class; `blocks`: other trainers' files are converted with the U-Net's
    configuration."""

    def __init__(self, pipeline: str, parts: tuple[str, ...], *, blocks: bool = False) -> None:
        self.parts, self._pipeline, self._blocks = parts, pipeline, blocks

    def read(self, path: Path, models: Mapping[str, Any]) -> Content:
        """What diffusers reads."""
        more = {"unet_config": models["unet"].config} if self._blocks else {}
        tensors, *alphas, metadata = self._class().lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
            **more,
        )
        return Content(tensors, (alphas[0] if alphas else None) or {}, metadata or {})

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's names, which the stock loader takes for any mix of modules, and its configuration as metadata."""
        layers, metadata = _exported(denoiser)
        part = self.parts[0]
        self._class().save_lora_weights(
            folder,
            weight_name=name,
            safe_serialization=True,
            **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": metadata},
        )
        _order_header(folder / name)

    def _class(self) -> Any:
        import diffusers

        return getattr(diffusers, self._pipeline)


class Plain:
    """Peft's names alone, for denoisers whose pipeline has no LoRA loader; the file is laid out as diffusers lays out
    the others."""

    def __init__(self, part: str) -> None:
        self.parts: tuple[str, ...] = (part,)

    def read(self, path: Path, models: Mapping[str, Any]) -> Content:
        """Tensors named `<part>.<module>.lora_A.weight` and `...lora_B.weight`, as peft names them."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get(METADATA)
        return Content(tensors, {}, json.loads(text) if text else {})

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's configuration as metadata."""
        from diffusers.loaders.lora_base import LoraBaseMixin

        (part,) = self.parts
        layers, metadata = _exported(denoiser)
        LoraBaseMixin.write_lora_layers(
            state_dict=LoraBaseMixin.pack_weights(layers, part),
            save_directory=str(folder),
            is_main_process=True,
            weight_name=name,
            save_function=None,  # type: ignore[arg-type]
            safe_serialization=True,
            lora_adapter_metadata={f"{part}.{key}": value for key, value in metadata.items()},
        )
        _order_header(folder / name)


def _exported(denoiser: Any) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The adapter's tensors, alpha / rank in the up matrices, and peft's configuration with an alpha that equals the
    rank.

    Only diffusers reads an alpha from the metadata; every tool takes a file without alphas for one whose alphas equal
    its ranks. Sets are put in order, so that equal adapters make equal files whatever the process.
    """
    from peft.utils import get_peft_model_state_dict

    config = denoiser.peft_config["default"]
    factor = config.lora_alpha / config.r
    layers = {
        key: (value * factor if ".lora_B." in key else value).contiguous()
        for key, value in get_peft_model_state_dict(denoiser).items()
    }
    metadata = config.to_dict() | {"lora_alpha": config.r}
    return layers, {
        key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in metadata.items()
    }


def _order_header(path: Path) -> None:
    """Put a safetensors file's metadata in the order of their names; the library writes them in an order drawn by
    chance."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
