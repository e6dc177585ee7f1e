"""Random-weight directories of the other families, of their real classes: SDXL, SD3 with and without T5, DiT, and EDM
in pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.checkpoints import WORDS, make_tokenizer

SIZE = 8  # pixels that every one of them is made for; the VAE halves them once
WIDTHS = (32, 48)  # of the two CLIP text encoders
LENGTH = 16
LABELS = ("zero, nought", "one, unity", "two", "three, trio", "four", "five", "six", "seven", "eight", "nine")
WRITERS: dict[str, Callable[[Path], Path]] = {}


def write_family(folder: Path, kind: str) -> Path:
    """Write `xl`, `sd3`, `sd3_t5`, `dit`, `pixel` or `pixel_plain` (told classes only, no weaker model) into `folder`,
    with the same weights each time; returns `folder`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return WRITERS[kind](folder)


def write_family_lora(folder: Path, checkpoint: Path, targets: tuple[str, ...], *, rank: int = 4) -> Path:
    """A LoRA of the checkpoint's denoiser by its family's own `save_lora`, its up matrices not zero."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    from engine.diffusion import layout
    from engine.diffusion.checkpoint import inspect, load
    from engine.spec.recipe import ModelSpec

    family = layout.read_index(checkpoint).family
    pipeline = load(inspect(ModelSpec(checkpoint=str(checkpoint)), SIZE), "cpu", "float32")
    denoiser = getattr(pipeline, family.denoiser)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)), denoiser)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in denoiser.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    family.save_lora(folder, "lora.safetensors", denoiser)
    return folder / "lora.safetensors"


def _writer(kind: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def keep(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
        WRITERS[kind] = write
        return write

    return keep


@_writer("xl")
def _xl(folder: Path) -> Path:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    first, second = (text_encoder(width, projection) for width, projection in zip(WIDTHS, (None, 20), strict=True))
    pipeline = StableDiffusionXLPipeline(
        vae=vae(4),
        unet=unet,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=make_tokenizer(LENGTH),
        tokenizer_2=bang_padded(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        image_encoder=_vision(WIDTHS[1]),
        feature_extractor=_processor(),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@_writer("sd3")
def _sd3(folder: Path, t5: bool = False) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    width = sum(WIDTHS) + 16
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        caption_projection_dim=32,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=6,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder(WIDTHS[0], WIDTHS[0]),
        text_encoder_2=text_encoder(WIDTHS[1], WIDTHS[1]),
        text_encoder_3=_t5(width) if t5 else None,
        tokenizer=make_tokenizer(LENGTH),
        tokenizer_2=bang_padded(),
        tokenizer_3=_t5_tokenizer() if t5 else None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _whole_clip(folder, WIDTHS[0])
    return folder


@_writer("sd3_t5")
def _sd3_t5(folder: Path) -> Path:
    return _sd3(folder, t5=True)


@_writer("dit")
def _dit(folder: Path) -> Path:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=4
    )
    pipeline = DiTPipeline(transformer, vae(4), DDIMScheduler(clip_sample=False))
    pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(LABELS)})
    pipeline.save_pretrained(folder, safe_serialization=True)
    _whole_clip(folder, WIDTHS[0])
    return folder


@_writer("pixel_plain")
def _pixel(folder: Path, told: bool = False, **settings: Any) -> Path:
    """Of ten classes and the null class; `told`: image features too, and a weaker model beside it; settings of
    `PixelSpec`."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from engine.diffusion.families.pixelpipeline import join
    from engine.diffusion.tiny import directory, pixelmodels
    from engine.spec.training import PixelSpec

    spec = PixelSpec(blocks=(16, 32), attention=(4,), head_dim=8, **settings)

    def unet() -> Any:
        made: Any = pixelmodels.build_unet(spec, SIZE, len(LABELS))
        made = join(made, pixelmodels.build_projection(made, WIDTHS[0])) if told else made
        for parameter in made.parameters():  # what training begins with predicts nothing
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
        return made

    clip = CLIPModel(
        CLIPConfig(
            text_config=_text_config(WIDTHS[0], WIDTHS[0]).to_dict(),
            vision_config=_vision_config(WIDTHS[0]).to_dict(),
            projection_dim=WIDTHS[0],
        )
    )
    parts = (make_tokenizer(LENGTH), clip, None, unet(), pixelmodels.build_scheduler(spec), LABELS)
    directory.save(directory.Stack(*parts, guide=unet() if told else None), folder)
    return folder


@_writer("pixel")
def _pixel_told(folder: Path) -> Path:
    return _pixel(folder, told=True)


@_writer("pixel_flow")
def _pixel_flow(folder: Path) -> Path:
    return _pixel(folder, told=True, objective="flow")


def vae(channels: int, **more: Any) -> Any:
    """A VAE that halves images once, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=SIZE,
        **more,
    ).eval()


def _text_config(width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    tokenizer = make_tokenizer(LENGTH)
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def text_encoder(width: int, projection: int | None) -> Any:
    """A CLIP text encoder of this width, with a projection where one is named."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return kind(_text_config(width, projection or width)).eval()


def bang_padded() -> Any:
    """As the second tokenizer of SDXL and SD3 is: padded with the token `!`."""
    tokenizer = make_tokenizer(LENGTH)
    tokenizer.pad_token = "!"
    return tokenizer


def _vision_config(projection: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=2,
    )


def _vision(projection: int) -> Any:
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(_vision_config(projection)).eval()


def _processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def _whole_clip(folder: Path, width: int) -> None:
    """`clip/` with its tokenizer and `feature_extractor/` beside the pipeline, as pretraining leaves them."""
    from transformers import CLIPConfig, CLIPModel

    text, vision = _text_config(width, width).to_dict(), _vision_config(width).to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).save_pretrained(folder / "clip")
    make_tokenizer(LENGTH).save_pretrained(folder / "clip")
    _processor().save_pretrained(folder / "feature_extractor")


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    letters = [chr(number) for number in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in WORDS if len(word) > 1)]
    return T5TokenizerFast(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=0)
