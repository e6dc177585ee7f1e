"""Pipelines of published shapes with random weights, made on the device: nothing is downloaded; and what a forward
costs in FLOPs.

The configurations are those of the published repositories: Stable Diffusion 1.5 (U-Net of 860 M parameters), Stable
Diffusion XL base (2,567 M), DiT-XL/2 at 256 pixels (750 M with its tables). `tiny=True` gives the same classes with few
channels, to see that a benchmark works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LENGTH = 77


@dataclass(frozen=True)
class Shape:
    """A family's sizes: image side in pixels, denoising steps, batches to try, target share of the device's matmul
    rate."""

    name: str
    size: int
    steps: int
    batches: tuple[int, ...]
    target: float


SHAPES = {
    "sd15": Shape("Stable Diffusion 1.5", 512, 20, (1, 2, 4, 8, 16, 32), 0.40),
    "sdxl": Shape("Stable Diffusion XL", 1024, 20, (1, 2, 4, 8), 0.50),
    "dit": Shape("DiT-XL/2", 256, 20, (4, 8, 16, 32, 64, 128), 0.45),
}
TINY = {
    "sd15": Shape("tiny Stable Diffusion", 64, 2, (1, 2), 0.40),
    "sdxl": Shape("tiny Stable Diffusion XL", 64, 2, (1, 2), 0.50),
    "dit": Shape("tiny DiT", 64, 2, (1, 2), 0.45),
}


def shape(kind: str, tiny: bool) -> Shape:
    """The sizes of a family."""
    return (TINY if tiny else SHAPES)[kind]


def pipeline(kind: str, device: str, dtype: str, tiny: bool) -> Any:
    """The family's stock text-to-image (DiT: class-to-image) pipeline on the device; its modules are in
    `.components`."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        made = {"sd15": _sd15, "sdxl": _sdxl, "dit": _dit}[kind](tiny)
    for module in made.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(getattr(torch, dtype)).eval().requires_grad_(False)
    made.set_progress_bar_config(disable=True)
    return made


def forward(kind: str, denoiser: Any, batch: int, device: str, dtype: Any) -> Any:
    """A function that calls the denoiser once with random inputs of a batch (both halves of a guided one: 2 x
    images)."""
    import torch

    config = denoiser.config
    random = torch.Generator(device if device != "meta" else "cpu").manual_seed(1)

    def normal(*size: int) -> Any:
        if device == "meta":
            return torch.empty(size, device=device, dtype=dtype)
        return torch.randn(size, generator=random, device=device, dtype=torch.float32).to(dtype)

    latents = normal(batch, config.in_channels, config.sample_size, config.sample_size)
    times = torch.full((batch,), 500, device=device)
    if kind == "dit":
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        return lambda: denoiser(latents, timestep=times, class_labels=labels).sample
    told: dict[str, Any] = {"encoder_hidden_states": normal(batch, LENGTH, config.cross_attention_dim)}
    if kind == "sdxl":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        told["added_cond_kwargs"] = {"text_embeds": normal(batch, pooled), "time_ids": normal(batch, 6)}
    return lambda: denoiser(latents, times, **told).sample


def flops(kind: str, steps: int, tiny: bool) -> dict[str, float]:
    """FLOPs of one denoiser forward, one VAE decoding, and one guided image (2 x steps forwards, 1 decoding), on meta
    tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        made = {"sd15": _sd15, "sdxl": _sdxl, "dit": _dit}[kind](tiny)
    denoiser = made.transformer if kind == "dit" else made.unet
    counted = {}
    latents = torch.empty(1, 4, denoiser.config.sample_size, denoiser.config.sample_size, device="meta")
    for name, call in (
        ("forward", forward(kind, denoiser, 1, "meta", torch.float32)),
        ("decode", lambda: made.vae.decode(latents).sample),
    ):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            call()
        counted[name] = float(counter.get_total_flops())
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return {**counted, "image": 2 * steps * counted["forward"] + counted["decode"], "parameters": float(parameters)}


def _vae(tiny: bool, latent: int, scaling: float) -> Any:
    from diffusers import AutoencoderKL

    widths = (8, 8, 16, 16) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        norm_num_groups=8 if tiny else 32,
        sample_size=8 * latent,
        scaling_factor=scaling,
        force_upcast=False,
    )


def _text(tiny: bool, width: int, layers: int, heads: int, act: str, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if not tiny:
        size = {"hidden_size": width, "intermediate_size": 4 * width}
        size |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    ends = {"bos_token_id": _tokenizer().bos_token_id, "eos_token_id": _tokenizer().eos_token_id}
    config = CLIPTextConfig(**size, projection_dim=size["hidden_size"], hidden_act=act, vocab_size=49408, **ends)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _tokenizer() -> Any:
    import torch

    from tests.support.checkpoints import make_tokenizer

    with torch.device("cpu"):
        return make_tokenizer(LENGTH)


def _scheduler() -> Any:
    import torch
    from diffusers import DDIMScheduler

    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    with torch.device("cpu"):
        return DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _sd15(tiny: bool) -> Any:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8 if tiny else 64,
        block_out_channels=(16, 32, 32, 32) if tiny else (320, 640, 1280, 1280),
        layers_per_block=1 if tiny else 2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32 if tiny else 768,
        attention_head_dim=4 if tiny else 8,
        norm_num_groups=8 if tiny else 32,
    )
    return StableDiffusionPipeline(
        vae=_vae(tiny, unet.config.sample_size, 0.18215),
        unet=unet,
        text_encoder=_text(tiny, 768, 12, 12, "quick_gelu", False),
        tokenizer=_tokenizer(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(tiny: bool) -> Any:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8 if tiny else 128,
        block_out_channels=(16, 32, 32) if tiny else (320, 640, 1280),
        layers_per_block=1 if tiny else 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2) if tiny else (1, 2, 10),
        attention_head_dim=(2, 4, 4) if tiny else (5, 10, 20),
        cross_attention_dim=64 if tiny else 2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8 if tiny else 256,
        projection_class_embeddings_input_dim=6 * 8 + 32 if tiny else 2816,
        norm_num_groups=8 if tiny else 32,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(tiny, unet.config.sample_size, 0.13025),
        unet=unet,
        text_encoder=_text(tiny, 768, 12, 12, "quick_gelu", False),
        text_encoder_2=_text(tiny, 1280, 32, 20, "gelu", True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=_scheduler(),
        add_watermarker=False,
    )


def _dit(tiny: bool) -> Any:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    from engine.diffusion.families.dit import without_dropout

    transformer = DiTTransformer2DModel(
        num_attention_heads=2 if tiny else 16,
        attention_head_dim=16 if tiny else 72,
        in_channels=4,
        out_channels=8,
        num_layers=2 if tiny else 28,
        sample_size=8 if tiny else 32,
    )
    without_dropout(transformer)
    return DiTPipeline(transformer, _vae(tiny, transformer.config.sample_size, 0.18215), _scheduler())
