"""Stable Diffusion XL: a U-Net that reads the tokens of two CLIP text encoders side by side, a pooled text and the
image's size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion.families import checks
from engine.diffusion.families import parts as known
from engine.diffusion.families.adapters import Adapters, Stock
from engine.diffusion.families.family import CheckpointFacts, Condition, Configs, find_place, places
from engine.diffusion.families.parts import Part
from engine.diffusion.families.sd import StableDiffusion

if TYPE_CHECKING:
    import torch

SIZES = 6  # of the image, the crop's corner, and the target: height and width of each
PARTS = {
    "vae": known.VAE,
    "unet": known.UNET,
    "text_encoder": known.CLIP_TEXT,
    "text_encoder_2": known.CLIP_TEXT_PROJECTED,
    "tokenizer": known.CLIP_TOKENIZER,
    "tokenizer_2": known.CLIP_TOKENIZER,
    "scheduler": known.DIFFUSION_SCHEDULER,
    "image_encoder": known.CLIP_VISION,
    "feature_extractor": known.IMAGE_PROCESSOR,
}


class XlEncoder:
    """Both encoders' last layers but one as `states`, the second's projection as `pooled`, sizes as `time_ids`.

    The text encoders read a prompt alone. No prompt at all is zeros where the checkpoint says so.
    """

    def __init__(self, pipeline: Any, side: int) -> None:
        from engine.diffusion.conditioning import CACHE_BYTES, Recent

        self._pairs = [(getattr(pipeline, f"tokenizer{n}"), getattr(pipeline, f"text_encoder{n}")) for n in ("", "_2")]
        widths = [int(encoder.config.hidden_size) for _, encoder in self._pairs]
        self._length = min(
            min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
            for tokenizer, encoder in self._pairs
        )
        self._places = places(widths, self._length - 1)
        self._zeros = bool(pipeline.config.force_zeros_for_empty_prompt)
        self._sizes = [side, side, 0, 0, side, side]
        size = self._length * sum(widths) * self._pairs[0][1].dtype.itemsize
        self._cache: Recent[Condition] = Recent(max(16, CACHE_BYTES // size))

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """`states` (L, D1 + D2), `pooled` (P,), `time_ids` (6,)."""
        told = self._cache.get(prompt, self._encode)
        if prompt or label is not None or not self._zeros:
            return told
        return {name: value if name == "time_ids" else value * 0 for name, value in told.items()}

    def place(self, width: int) -> tuple[int, int]:
        """The channels of the encoder of that width, in the last token."""
        return find_place(self._places, width)

    def _encode(self, prompt: str) -> Condition:
        import torch

        from engine.diffusion.conditioning import penultimate

        states, pooled = zip(*(penultimate(*pair, prompt, self._length) for pair in self._pairs), strict=True)
        joined = torch.cat(states, dim=-1)
        return {"states": joined, "pooled": pooled[1], "time_ids": torch.tensor(self._sizes).to(joined)}


class StableDiffusionXl(StableDiffusion):
    """The family of `StableDiffusionXLPipeline`, without refiners."""

    name = "Stable Diffusion XL"
    pipelines: tuple[str, ...] = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    parts: Mapping[str, Part] = PARTS
    settings: tuple[str, ...] = ("force_zeros_for_empty_prompt",)
    counts_steps = True
    adapters: Adapters = Stock("StableDiffusionXLPipeline", ("unet", "text_encoder", "text_encoder_2"), blocks=True)

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Refuses special U-Nets (inpainting, refiners, distilled guidance) and text encoders of other widths."""
        unet, vae = configs["unet"], configs["vae"]
        taken = (unet.get("in_channels", 4), unet.get("out_channels", 4))
        channels = checks.latent_channels(folder, "U-Net", taken, vae)
        checks.unet_inputs(folder, unet, self.name, "text_time")
        widths = [int(configs[f"text_encoder{n}"].get("hidden_size", 512)) for n in ("", "_2")]
        checks.reads(folder, "U-Net", unet.get("cross_attention_dim", 1280), sum(widths), "joined text tokens")
        sizes = SIZES * int(unet.get("addition_time_embed_dim") or 0)
        pooled = int(configs["text_encoder_2"].get("projection_dim", 512))
        added = int(unet.get("projection_class_embeddings_input_dim") or 0) - sizes
        checks.reads(folder, "U-Net", added, pooled, "a pooled text")
        length = checks.two_text_lengths(folder, configs)
        return {
            "latent_channels": channels,
            "latent_size": checks.unet_latent_size(unet, vae, image_size),
            "places": places(widths, length - 1),
            "text_length": length,
            "prediction_type": checks.prediction_type(folder, configs["scheduler"], self.name),
        }

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, object]:
        """As it is."""
        return dict(config)

    def build(self, components: Mapping[str, Any]) -> Any:
        """Without watermark."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(**components, add_watermarker=False)

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """The stock pipelines, img2img from latents of any number of channels."""
        from engine.diffusion.families import pipelines

        kind = pipelines.LatentImg2ImgXL if from_image else pipelines.StableDiffusionXLPipeline
        zeros = bool(pipeline.config.force_zeros_for_empty_prompt)
        return kind(**pipeline.components, force_zeros_for_empty_prompt=zeros, add_watermarker=False)

    def ask(self, condition: Condition, without: Condition | None, side: int | None) -> dict[str, object]:
        """Tokens and pooled texts; the call counts the sizes itself."""
        asked = super().ask(condition, without, side)
        asked["pooled_prompt_embeds"] = condition["pooled"]
        return asked if without is None else asked | {"negative_pooled_prompt_embeds": without["pooled"]}

    def encoder(self, pipeline: Any) -> Any:
        """The encoder of a loaded pipeline, at its default image size."""
        return XlEncoder(pipeline, pipeline.unet.config.sample_size * pipeline.vae_scale_factor)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's output."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        states = condition["states"]
        predicted: torch.Tensor = denoiser(noisy, times, encoder_hidden_states=states, added_cond_kwargs=added).sample
        return predicted

    def example(self, denoiser: Any) -> Condition:
        """One token, a pooled text, and the sizes."""
        import torch

        config = denoiser.config
        pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
        sizes = {"pooled": torch.zeros(1, pooled), "time_ids": torch.zeros(1, SIZES)}
        return {"states": torch.zeros(1, 1, config.cross_attention_dim), **sizes}
