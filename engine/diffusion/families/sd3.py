"""Stable Diffusion 3: a transformer over image and text (MMDiT) trained by flow matching; two CLIPs and, if there is
one, T5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion.families import checks
from engine.diffusion.families import parts as known
from engine.diffusion.families.adapters import Adapters, Stock
from engine.diffusion.families.family import CheckpointFacts, Condition, Configs, find_place, places
from engine.diffusion.families.parts import Part
from engine.diffusion.families.xl import StableDiffusionXl
from engine.diffusion.schedulers import Kind
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

if TYPE_CHECKING:
    import torch

    from engine.diffusion.process import Process

T5_LENGTH = 256  # StableDiffusion3Pipeline's max_sequence_length
PARTS = {
    "vae": known.VAE,
    "transformer": Part("model", ("SD3Transformer2DModel",)),
    "text_encoder": known.CLIP_TEXT_PROJECTED,
    "text_encoder_2": known.CLIP_TEXT_PROJECTED,
    "text_encoder_3": Part("model", ("T5EncoderModel",), "transformers", required=False),
    "tokenizer": known.CLIP_TOKENIZER,
    "tokenizer_2": known.CLIP_TOKENIZER,
    "tokenizer_3": Part(
        "tokenizer", ("T5TokenizerFast", "T5Tokenizer"), "transformers", required=False, length=T5_LENGTH
    ),
    "scheduler": known.FLOW_SCHEDULER,
    "image_encoder": Part("ignored", ("SiglipVisionModel",), "transformers"),
    "feature_extractor": Part("ignored", ("SiglipImageProcessor",), "transformers"),
}


class Sd3Encoder:
    """Both CLIPs' last layers but one side by side, then T5's tokens, as `states`; both projections as `pooled`.

    Every prompt is read alone. Without T5 its tokens are zeros, as in the stock pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        from engine.diffusion.conditioning import CACHE_BYTES, Recent

        self._pairs = [(getattr(pipeline, f"tokenizer{n}"), getattr(pipeline, f"text_encoder{n}")) for n in ("", "_2")]
        self._t5, self._t5_tokenizer = pipeline.text_encoder_3, pipeline.tokenizer_3
        widths = [int(encoder.config.hidden_size) for _, encoder in self._pairs]
        self._width = int(pipeline.transformer.config.joint_attention_dim)
        positions = min(int(encoder.config.max_position_embeddings) for _, encoder in self._pairs)
        self._length = min(int(pipeline.tokenizer.model_max_length), positions)
        self._places = places(widths, self._length - 1)
        size = (self._length + T5_LENGTH) * self._width * self._pairs[0][1].dtype.itemsize
        self._cache: Recent[Condition] = Recent(max(16, CACHE_BYTES // size))

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """`states` (L + 256, D), `pooled` (P1 + P2,)."""
        return self._cache.get(prompt, self._encode)

    def place(self, width: int) -> tuple[int, int]:
        """The channels of the CLIP of that width, in the last of the CLIPs' tokens."""
        return find_place(self._places, width)

    def _encode(self, prompt: str) -> Condition:
        import torch

        from engine.diffusion.conditioning import penultimate

        read = [penultimate(*pair, prompt, self._length) for pair in self._pairs]
        clip = torch.cat([states for states, _ in read], dim=-1)
        clip = torch.nn.functional.pad(clip, (0, self._width - clip.shape[-1]))
        pooled = torch.cat([pooled for _, pooled in read if pooled is not None], dim=-1)
        return {"states": torch.cat([clip, self._long(prompt, clip)]), "pooled": pooled}

    def _long(self, prompt: str, like: torch.Tensor) -> torch.Tensor:
        """T5's tokens (256, D)."""
        import torch

        from engine.diffusion.conditioning import tokenize

        if self._t5 is None:
            return like.new_zeros(T5_LENGTH, self._width)
        ids, _ = tokenize(self._t5_tokenizer, prompt, T5_LENGTH, self._t5.device)
        with torch.inference_mode():
            states: torch.Tensor = self._t5(ids)[0][0]
        return states.to(like)


class StableDiffusion3(StableDiffusionXl):
    """The family of `StableDiffusion3Pipeline`."""

    name = "Stable Diffusion 3"
    denoiser = "transformer"
    pipelines: tuple[str, ...] = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    parts: Mapping[str, Part] = PARTS
    settings: tuple[str, ...] = ()
    samplers: Kind = "flow"
    counts_steps = False
    adapters: Adapters = Stock("StableDiffusion3Pipeline", ("transformer", "text_encoder", "text_encoder_2"))

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Refuses text encoders of other widths, T5 without its tokenizer, and images larger than the position
        table."""
        network, vae = configs["transformer"], configs["vae"]
        taken = (network.get("in_channels", 16), network.get("out_channels") or network.get("in_channels", 16))
        channels = checks.latent_channels(folder, "transformer", taken, vae)
        widths = [int(configs[f"text_encoder{n}"].get("hidden_size", 512)) for n in ("", "_2")]
        pooled = sum(int(configs[f"text_encoder{n}"].get("projection_dim", 512)) for n in ("", "_2"))
        checks.reads(folder, "transformer", network.get("pooled_projection_dim", 2048), pooled, "pooled texts")
        joint = int(network.get("joint_attention_dim", 4096))
        if sum(widths) > joint:
            checks.reads(folder, "transformer", joint, sum(widths))
        if ("text_encoder_3" in configs) != ("tokenizer_3" in configs):
            what = "has one of text_encoder_3 and tokenizer_3 without the other"
            raise ConfigError(str(folder), what, "copy both, or set both to [null, null] in model_index.json")
        if "text_encoder_3" in configs:
            checks.reads(folder, "transformer", joint, configs["text_encoder_3"].get("d_model", 512))
        length = checks.two_text_lengths(folder, configs)
        size = checks.patch_latent_size(network, vae, image_size)
        largest = int(network.get("pos_embed_max_size", 96)) * int(network.get("patch_size", 2)) * checks.scale(vae)
        if image_size > largest:
            what = f"{image_size} pixels are more than the checkpoint's table of positions covers"
            raise ConfigError("images.size", what, f"use at most {largest}")
        return {
            "latent_channels": channels,
            "latent_size": size,
            "places": places(widths, length - 1),
            "text_length": length,
            "prediction_type": "flow",
        }

    def check_generate(self, generate: GenerateSpec) -> None:
        """No kept features."""
        checks.no_kept_features(generate, self.name)

    def build(self, components: Mapping[str, Any]) -> Any:
        """T5 and its tokenizer are None where there are none."""
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(**{"text_encoder_3": None, "tokenizer_3": None, **components})

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """The stock pipelines, whose img2img takes latents as they are."""
        from engine.diffusion.families import pipelines

        kind = pipelines.StableDiffusion3Img2ImgPipeline if from_image else pipelines.StableDiffusion3Pipeline
        return kind(**pipeline.components)

    def encoder(self, pipeline: Any) -> Any:
        """The encoder of a loaded pipeline."""
        return Sd3Encoder(pipeline)

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """Rectified flow, shifted as the checkpoint's scheduler is."""
        from engine.diffusion.process import Flow

        return Flow.of(scheduler_config)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The transformer's output."""
        predicted: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=condition["states"],
            pooled_projections=condition["pooled"],
        ).sample
        return predicted

    def example(self, denoiser: Any) -> Condition:
        """One token and a pooled text."""
        import torch

        config = denoiser.config
        pooled = torch.zeros(1, config.pooled_projection_dim)
        return {"states": torch.zeros(1, 1, config.joint_attention_dim), "pooled": pooled}
