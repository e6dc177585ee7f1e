"""How a family's LoRA files are read, put into models and written: by its stock pipeline, or by peft where there is no loader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

ADAPTER = "mimeo"
METADATA = "lora_adapter_metadata"
_LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by the loader's own names, alphas, and the metadata that peft wrote."""

    tensors: dict[str, torch.Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None


class Adapters(Protocol):
    """`parts`: the components that a LoRA may change, the denoiser first."""

    parts: tuple[str, ...]

    def read(self, path: Path, models: dict[str, Any]) -> Content:
        """The content of a file; `models` are the components without numbers. Raises whatever converters stumble over."""

    def put(self, content: Content, part: str, model: Any) -> None:
        """Add the adapter to one component as the loader does; raises where it does not fit."""

    def attach(self, pipeline: Any, path: Path, scale: float) -> None:
        """Add the adapter at `scale`: to the weights, but in bfloat16 beside them."""

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """Write the adapter `default` that peft has put into the denoiser."""


class Stock:
    """The loader of a stock pipeline class; `blocks`: other trainers' files are converted with the U-Net's configuration."""

    def __init__(self, pipeline: str, parts: tuple[str, ...], *, blocks: bool = False) -> None:
        self.parts, self._pipeline, self._blocks = parts, pipeline, blocks

    def read(self, path: Path, models: dict[str, Any]) -> Content:
        """What diffusers reads."""
        more = {"unet_config": models["unet"].config} if self._blocks else {}
        tensors, *alphas, metadata = self._class().lora_state_dict(
            str(path.parent), weight_name=path.name, return_lora_metadata=True, **more, **_LOCAL
        )
        return Content(tensors, alphas[0] if alphas else None, metadata)

    def put(self, content: Content, part: str, model: Any) -> None:
        """By the class's own `load_lora_into_...`."""
        options = {"adapter_name": ADAPTER, "metadata": content.metadata, "low_cpu_mem_usage": True}
        tensors, loader = dict(content.tensors), self._class()
        if part.startswith("text_encoder"):
            loader.load_lora_into_text_encoder(tensors, content.alphas, model, prefix=part, **options)
        elif part == "unet":
            loader.load_lora_into_unet(tensors, content.alphas, model, **options)
        else:
            loader.load_lora_into_transformer(tensors, model, **options)

    def attach(self, pipeline: Any, path: Path, scale: float) -> None:
        """By the pipeline's own methods."""
        import torch

        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER, **_LOCAL)
        if getattr(pipeline, self.parts[0]).dtype == torch.bfloat16:
            pipeline.set_adapters([ADAPTER], [scale])
        else:
            pipeline.fuse_lora(components=list(pipeline.get_list_adapters()), lora_scale=scale)
            pipeline.unload_lora_weights()

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's names, which the stock loader takes for any mix of modules, and its configuration as metadata."""
        from peft.utils import get_peft_model_state_dict

        layers, part = get_peft_model_state_dict(denoiser), self.parts[0]
        metadata = _metadata(denoiser)
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
    """Peft alone, for denoisers whose pipeline has no LoRA loader; the file is laid out as diffusers lays out the others."""

    def __init__(self, part: str) -> None:
        self.parts: tuple[str, ...] = (part,)

    def read(self, path: Path, models: dict[str, Any]) -> Content:
        """Tensors named `<part>.<module>.lora_A.weight` and `...lora_B.weight`, as peft names them."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get(METADATA)
        metadata = json.loads(text) if text else None
        prefix = f"{self.parts[0]}."
        for option in ("use_dora", "use_rslora", "alpha_pattern"):
            if metadata and metadata.get(prefix + option):
                raise ValueError(f"its metadata ask for {option}")
        return Content(tensors, None, metadata)

    def put(self, content: Content, part: str, model: Any) -> None:
        """Into the modules that the tensors name."""
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

        prefix = f"{part}."
        tensors = {key.removeprefix(prefix): value for key, value in content.tensors.items()}
        end = ".lora_A.weight"
        ranks = {key.removesuffix(end): value.shape[0] for key, value in tensors.items() if key.endswith(end)}
        alpha = (content.metadata or {}).get(f"{prefix}lora_alpha")
        config = LoraConfig(
            r=next(iter(ranks.values())),
            lora_alpha=alpha or next(iter(ranks.values())),
            target_modules=list(ranks),
            rank_pattern={f"^{name}": rank for name, rank in ranks.items()},
            alpha_pattern={} if alpha else {f"^{name}": rank for name, rank in ranks.items()},
        )
        on_meta = any(value.is_meta for value in model.parameters())
        inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=on_meta)
        set_peft_model_state_dict(model, tensors, ADAPTER, low_cpu_mem_usage=on_meta)

    def attach(self, pipeline: Any, path: Path, scale: float) -> None:
        """The same as the stock loaders do."""
        import torch
        from diffusers.utils.peft_utils import recurse_remove_peft_layers
        from peft.tuners.tuners_utils import BaseTunerLayer

        (part,) = self.parts
        model = getattr(pipeline, part)
        self.put(self.read(path, {}), part, model)
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.scale_layer(scale)
        if model.dtype != torch.bfloat16:
            for layer in layers:
                layer.merge()
            recurse_remove_peft_layers(model)
            del model.peft_config

    def save(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's configuration as metadata."""
        from diffusers.loaders.lora_base import LoraBaseMixin
        from peft.utils import get_peft_model_state_dict

        (part,) = self.parts
        state = {key: value.contiguous() for key, value in get_peft_model_state_dict(denoiser).items()}
        metadata = _metadata(denoiser)
        LoraBaseMixin.write_lora_layers(
            state_dict=LoraBaseMixin.pack_weights(state, part),
            save_directory=str(folder),
            is_main_process=True,
            weight_name=name,
            save_function=None,  # type: ignore[arg-type]
            safe_serialization=True,
            lora_adapter_metadata={f"{part}.{key}": value for key, value in metadata.items()},
        )
        _order_header(folder / name)


def _metadata(denoiser: Any) -> dict[str, Any]:
    """Peft's configuration with sets in order, so that equal adapters make equal files whatever the process."""
    config = denoiser.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in config.items()}


def _order_header(path: Path) -> None:
    """Put a safetensors file's metadata in the order of their names; the library writes them in an order drawn by chance."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
