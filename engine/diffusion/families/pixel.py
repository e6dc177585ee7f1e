"""Class-conditional U-Nets in pixels, trained under EDM (arXiv 2206.00364) or by flow matching: no VAE, no text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion.families import parts as known
from engine.diffusion.families.adapters import Adapters, Plain
from engine.diffusion.families.family import CheckpointFacts, Condition, Configs, find_place, places
from engine.diffusion.families.parts import Part
from engine.diffusion.schedulers import Kind
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

if TYPE_CHECKING:
    import torch

    from engine.diffusion.process import Process

RGB = 3
GUIDE = "guide"
PROJECTION, GUIDE_PROJECTION = "image_projection", "guide_projection"
SIGMA_DATA = 0.5  # the standard deviation that images are taken to have
PARTS = {
    "unet": Part("model", ("UNet2DModel",)),
    "scheduler": known.EDM_SCHEDULER,
    PROJECTION: Part("model", ("ReduxImageEncoder",), required=False),
    GUIDE: Part("model", ("UNet2DModel",), required=False),
    GUIDE_PROJECTION: Part("model", ("ReduxImageEncoder",), required=False),
}


class PixelEncoder:
    """The number of the class, `labels` (), that of no class being the last; `states` (1, D) for an image feature,
    zeros for none."""

    def __init__(self, classes: int, width: int | None, device: torch.device, dtype: torch.dtype) -> None:
        self._classes, self._width, self._device, self._dtype = classes, width, device, dtype

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """The prompt is not read. ConfigError for a class that the checkpoint does not know."""
        import torch

        if label is not None and not 0 <= label < self._classes:
            raise ConfigError("model.checkpoint", f"knows {self._classes} classes, none of them number {label}")
        condition = {"labels": torch.tensor(self._classes if label is None else label, device=self._device)}
        if self._width is not None:
            condition["states"] = torch.zeros(1, self._width, device=self._device, dtype=self._dtype)
        return condition

    def place(self, width: int) -> tuple[int, int]:
        """The whole of the only token; ConfigError where the checkpoint is told classes only."""
        if self._width is None:
            _no_token("set")
        return find_place(places([self._width], 0), width)  # type: ignore[list-item]


class Pixel:
    """The family of `ConsistencyModelPipeline` with a U-Net and an EDM sampler, which draws their samples class by
    class.

    The last of the U-Net's classes is none. Beside them may lie `image_projection`, which adds image features to the
    class, and
    `guide`, the weaker model of autoguidance (arXiv 2406.02507), with a projection of its own; stock pipelines leave
    these out.
    """

    name = "EDM in pixels"
    denoiser = "unet"
    pipelines: tuple[str, ...] = ("ConsistencyModelPipeline",)
    parts: Mapping[str, Part] = PARTS
    settings: tuple[str, ...] = ("id2label",)
    samplers: Kind = "edm"
    counts_steps = False
    adapters: Adapters = Plain("unet")

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Refuses other channels than RGB, U-Nets without classes, and parts that do not fit each other."""
        unet, where = configs["unet"], str(folder / "unet")
        if (unet.get("in_channels", RGB), unet.get("out_channels", RGB)) != (RGB, RGB):
            raise ConfigError(where, "does not take and give RGB", f"use a checkpoint of {self.name}")
        classes = unet.get("num_class_embeds")
        if unet.get("class_embed_type") is not None or not isinstance(classes, int) or classes < 2:
            raise ConfigError(where, "is told no classes (num_class_embeds)", f"use a checkpoint of {self.name}")
        step = 2 ** (len(unet.get("block_out_channels", (224, 448, 672, 896))) - 1)
        if image_size % step:
            what = f"{image_size} pixels do not fit the checkpoint, which halves them {step.bit_length() - 1} times"
            raise ConfigError("images.size", what, f"use a multiple of {max(step, 8)}")
        if configs["scheduler"].get("sigma_data", SIGMA_DATA) != SIGMA_DATA:
            what = f"is for images of standard deviation {configs['scheduler']['sigma_data']}, not {SIGMA_DATA}"
            raise ConfigError(str(folder / "scheduler"), what, "use another checkpoint")
        _check_guide(folder, configs)
        return {
            "latent_channels": RGB,
            "latent_size": image_size,
            "places": places([int(configs[PROJECTION]["redux_dim"])], 0) if PROJECTION in configs else {},
            "text_length": 0,
            "prediction_type": str(configs["scheduler"].get("prediction_type", "epsilon")),
            "classes": classes - 1,
        }

    def check_generate(self, generate: GenerateSpec) -> None:
        """No negative prompt."""
        if generate.negative_prompt:
            what = "is set, but the checkpoint is told classes only, no text"
            raise ConfigError("generate.negative_prompt", what, "leave it out")

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, object]:
        """As it is."""
        return dict(config)

    def build(self, components: Mapping[str, Any]) -> Any:
        """The pipeline with its own parts beside, and what stands for a VAE."""
        from engine.diffusion.families.pixelpipeline import ClassToPixels

        return ClassToPixels(**components)

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """The same for both."""
        return self.build(dict(pipeline.components))

    def ask(self, condition: Condition, without: Condition | None, side: int | None) -> dict[str, object]:
        """`told`, and what guidance leads away from."""
        return {"told": condition, "without": without}

    def encoder(self, pipeline: Any) -> PixelEncoder:
        """The encoder of a loaded pipeline."""
        unet, projection = pipeline.unet, pipeline.image_projection
        width = None if projection is None else projection.config.redux_dim
        return PixelEncoder(unet.config.num_class_embeds - 1, width, unet.device, unet.dtype)

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """EDM's, with its published noise levels."""
        from engine.diffusion.process import Edm

        return Edm.of(scheduler_config)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's output for the scaled input; `denoiser` was given its projection by `pixelpipeline.join`, if it
        has one."""
        from engine.diffusion.process import Edm

        times = times.to(noisy.device)
        told = condition if "states" in condition else condition["labels"]
        predicted: torch.Tensor = denoiser(Edm().scaled(noisy, times), times, class_labels=told).sample
        return predicted

    def example(self, denoiser: Any) -> Condition:
        """A class."""
        import torch

        return {"labels": torch.zeros(1, dtype=torch.int64)}

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's configuration as metadata; diffusers has no loader for it, `engine.diffusion.lora` has."""
        self.adapters.save(folder, name, denoiser)

    def save_whole(self, folder: Path, denoiser: Any) -> tuple[str, ...]:
        """The U-Net and its projection."""
        from engine.diffusion.families.pixelpipeline import save

        return save(denoiser, folder, ("unet", PROJECTION))


class PixelFlow(Pixel):
    """The same U-Nets trained by flow matching, in a directory of `DDPMPipeline`, which opens them but does not tell
    them a class."""

    name = "flow matching in pixels"
    pipelines: tuple[str, ...] = ("DDPMPipeline",)
    parts: Mapping[str, Part] = PARTS | {"scheduler": known.FLOW_SCHEDULER}
    samplers: Kind = "flow"

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Those of the other, but for what is predicted."""
        return super().facts(folder, configs, image_size) | {"prediction_type": "flow"}

    def build(self, components: Mapping[str, Any]) -> Any:
        """The pipeline with its own parts beside, and what stands for a VAE."""
        from engine.diffusion.families.pixelpipeline import FlowToPixels

        return FlowToPixels(**components)

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """A straight line from the image to the noise."""
        from engine.diffusion.process import Flow

        return Flow.of(scheduler_config)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's output."""
        told = condition if "states" in condition else condition["labels"]
        predicted: torch.Tensor = denoiser(noisy, times.to(noisy.device), class_labels=told).sample
        return predicted


def _check_guide(folder: Path, configs: Configs) -> None:
    """Refuse a weaker model that is told other things than the U-Net."""
    if GUIDE in configs:
        same = [configs[GUIDE].get(key) == configs["unet"].get(key) for key in ("num_class_embeds", "out_channels")]
        widths = [
            configs[name].get("redux_dim") if name in configs else None for name in (PROJECTION, GUIDE_PROJECTION)
        ]
        if not all(same) or len(set(widths)) > 1:
            raise ConfigError(
                str(folder / GUIDE), f"is told other things than {folder / 'unet'}", "use parts of one model"
            )


def _no_token(value: str) -> None:
    what = f"is {value}, but the checkpoint is told classes only, no image features"
    raise ConfigError("generate.visual_token", what, "set generate.visual_token to none")
