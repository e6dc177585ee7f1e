"""Stable Diffusion 1 and 2: a U-Net that reads the tokens of one CLIP text encoder; noise or velocity prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion.families import checks
from engine.diffusion.families import parts as known
from engine.diffusion.families.adapters import Adapters, Stock
from engine.diffusion.families.family import CheckpointFacts, Condition, Configs, find_place, places
from engine.diffusion.families.parts import Part
from engine.diffusion.schedulers import Kind
from engine.spec.recipe import GenerateSpec

if TYPE_CHECKING:
    import torch

    from engine.diffusion.conditioning import PromptEncoder
    from engine.diffusion.process import Process

PARTS = {
    "vae": known.VAE,
    "unet": known.UNET,
    "text_encoder": known.CLIP_TEXT,
    "tokenizer": known.CLIP_TOKENIZER,
    "scheduler": known.DIFFUSION_SCHEDULER,
    "image_encoder": known.CLIP_VISION,
    "feature_extractor": known.IMAGE_PROCESSOR,
    "safety_checker": Part("ignored", ("StableDiffusionSafetyChecker",)),
}


class SdEncoder:
    """The text encoder's tokens as `states`; the image feature takes the place of the last one."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts
        self._places = places([prompts.width], prompts.length - 1)

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """`states` (L, D)."""
        return {"states": self._prompts.encode(prompt)}

    def place(self, width: int) -> tuple[int, int]:
        """The whole last token."""
        return find_place(self._places, width)


class StableDiffusion:
    """The family of `StableDiffusionPipeline`."""

    name = "Stable Diffusion 1 or 2"
    denoiser = "unet"
    pipelines: tuple[str, ...] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    parts: Mapping[str, Part] = PARTS
    settings: tuple[str, ...] = ()
    samplers: Kind = "diffusion"
    counts_steps = False
    adapters: Adapters = Stock("StableDiffusionPipeline", ("unet", "text_encoder"))

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Refuses special U-Nets (inpainting, class embeddings, distilled guidance) and text encoders of another
        width."""
        unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
        taken = (unet.get("in_channels", 4), unet.get("out_channels", 4))
        channels = checks.latent_channels(folder, "U-Net", taken, vae)
        checks.unet_inputs(folder, unet, self.name)
        width = int(text.get("hidden_size", 512))
        checks.reads(folder, "U-Net", unet.get("cross_attention_dim", 1280), width)
        prediction = checks.prediction_type(folder, configs["scheduler"], self.name)
        length = checks.text_length(text, configs["tokenizer"])
        return {
            "latent_channels": channels,
            "latent_size": checks.unet_latent_size(unet, vae, image_size),
            "places": places([width], length - 1),
            "text_length": length,
            "prediction_type": prediction,
        }

    def check_generate(self, generate: GenerateSpec) -> None:
        """Everything can be asked."""

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, object]:
        """`steps_offset` and `clip_sample`, where they are set, are 1 and false."""
        stock = {"steps_offset": 1, "clip_sample": False}
        return {key: stock.get(key, value) for key, value in config.items()}

    def build(self, components: Mapping[str, Any]) -> Any:
        """Without safety checker."""
        from diffusers import StableDiffusionPipeline

        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**{**components, **extra})

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """The stock pipelines, img2img from latents of any number of channels."""
        from engine.diffusion.families import pipelines

        kind = pipelines.LatentImg2Img if from_image else pipelines.StableDiffusionPipeline
        return kind(**pipeline.components | {"safety_checker": None}, requires_safety_checker=False)

    def ask(self, condition: Condition, without: Condition | None, side: int | None) -> dict[str, object]:
        """`prompt_embeds` and `negative_prompt_embeds`."""
        asked: dict[str, object] = {} if side is None else {"height": side, "width": side}
        asked["prompt_embeds"] = condition["states"]
        return asked if without is None else asked | {"negative_prompt_embeds": without["states"]}

    def encoder(self, pipeline: Any) -> SdEncoder:
        """The encoder of a loaded pipeline."""
        from engine.diffusion.conditioning import PromptEncoder

        return SdEncoder(PromptEncoder(pipeline.tokenizer, pipeline.text_encoder))

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """DDPM's, with the checkpoint's noise schedule and prediction type."""
        from engine.diffusion.process import Diffusion

        return Diffusion.of(scheduler_config, device)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's output."""
        predicted: torch.Tensor = denoiser(noisy, times, encoder_hidden_states=condition["states"]).sample
        return predicted

    def example(self, denoiser: Any) -> Condition:
        """One token."""
        import torch

        return {"states": torch.zeros(1, 1, denoiser.config.cross_attention_dim)}

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's names and its configuration as metadata."""
        self.adapters.save(folder, name, denoiser)

    def save_whole(self, folder: Path, denoiser: Any) -> tuple[str, ...]:
        """The denoiser alone."""
        denoiser.save_pretrained(folder / self.denoiser, safe_serialization=True)
        return (self.denoiser,)
