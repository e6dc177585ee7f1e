"""Random-weight diffusers directories (digits, SD-1.5 and SD-2.1 shapes) and LoRA files made by real peft and
diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Family = Literal["digits", "sd15", "sd21"]

_COMMON: dict[str, Any] = {
    "text_layers": 2,
    "text_heads": 4,
    "act": "quick_gelu",
    "linear": False,
    "head_dim": 8,
    "layers": 1,
    "prediction": "epsilon",
    "latent_channels": 4,
    "groups": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "digits": _COMMON
    | {"width": 64, "length": 16, "vae": (16, 32), "unet": (32, 64), "sample": 4, "scale": 1.0, "clip": True},
    "sd15": _COMMON
    | {"width": 48, "length": 77, "vae": (8, 8, 16, 16), "unet": (16, 32, 32, 32), "sample": 8, "scale": 0.18215},
    "sd21": _COMMON
    | {
        "width": 64,
        "length": 77,
        "vae": (8, 8, 16, 16),
        "unet": (16, 32, 32, 32),
        "sample": 8,
        "scale": 0.18215,
        "text_layers": 3,
        "act": "gelu",
        "linear": True,
        "head_dim": [2, 4, 4, 4],
        "prediction": "v_prediction",
    },
}
WORDS = ("photo", "of", "digit", "zero", "one", "two", "three", "a", "thin", "bold", "slanted", "left", "right")


def write_checkpoint(folder: Path, family: Family = "digits", *, seed: int = 0, **changes: Any) -> Path:
    """Write a random-weight Stable Diffusion directory with safetensors; `changes` overrides keys of
    `FAMILIES[family]`.

    Image sizes: digits is made for 8 pixels (VAE x2), sd15 and sd21 for 64 (VAE x8). The digits family also has
    `image_encoder/`, `feature_extractor/` and `clip/` (the whole CLIPModel). Returns `folder`.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    shape = FAMILIES[family] | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = _clip(shape)
        components = {
            "vae": _vae(shape),
            "unet": _unet(shape),
            "text_encoder": _text_encoder(clip),
            "image_encoder": _image_encoder(clip) if shape.get("clip") else None,
        }
    pipeline = StableDiffusionPipeline(
        **components,
        tokenizer=make_tokenizer(shape["length"]),
        scheduler=_scheduler(shape),
        feature_extractor=_feature_extractor() if shape.get("clip") else None,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    if shape.get("clip"):
        clip.save_pretrained(folder / "clip", safe_serialization=True)
    else:
        _old_tokenizer_files(folder / "tokenizer")
        _old_weight_names(folder)
    return folder


def write_lora(
    folder: Path,
    checkpoint: Path,
    *,
    rank: int = 4,
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    text: bool = False,
    seed: int = 0,
    size: float = 0.5,
    name: str = "pytorch_lora_weights.safetensors",
) -> Path:
    """Write a LoRA for the U-Net (and text encoder) of `checkpoint` as diffusers' training scripts do; returns the
    file.

    The up matrices, zero at the start of a training, get normal values of scale `size`, as if it had been trained.
    """
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets)))
    models = {"unet_lora_layers": unet}
    if text:
        encoder = CLIPTextModel.from_pretrained(checkpoint, subfolder="text_encoder")
        encoder.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
        )
        models["text_encoder_lora_layers"] = encoder
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for key, model in models.items():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * size
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        layers[key] = convert_state_dict_to_diffusers(state)
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=name, safe_serialization=True, **layers)
    return folder / name


def make_tokenizer(length: int) -> Any:
    """A CLIPTokenizer over bytes, with merges that make each of `WORDS` one token."""
    from transformers import CLIPTokenizer

    vocab, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    pieces = symbols + [f"{symbol}</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[-2], parts[-1])
            parts[-2:] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                pieces.append(parts[-1])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, merges


def _old_tokenizer_files(folder: Path) -> None:
    """Leave what Stable Diffusion repositories hold: vocab.json and merges.txt, no tokenizer.json."""
    vocab, merges = _vocabulary()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")


def _old_weight_names(folder: Path) -> None:
    """Name the weights as the published Stable Diffusion 1 and 2 repositories do (their loaders rename them)."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / "model.safetensors"
    text = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    length = text["text_model.embeddings.position_embedding.weight"].shape[0]
    text["text_model.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(text, path, {"format": "pt"})
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    vae = {}
    for name, tensor in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part)
        vae[name] = tensor
    save_file(vae, path, {"format": "pt"})


def _clip(shape: dict[str, Any]) -> Any:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    vocab, _ = _vocabulary()
    ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"]}
    text = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=shape["width"],
        intermediate_size=2 * shape["width"],
        projection_dim=shape["width"],
        num_hidden_layers=shape["text_layers"],
        num_attention_heads=shape["text_heads"],
        max_position_embeddings=shape["length"],
        hidden_act=shape["act"],
        pad_token_id=vocab["<|endoftext|>"],
        **ends,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=shape["width"],
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=2,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=shape["width"])
    return CLIPModel(config).eval()


def _text_encoder(clip: Any) -> Any:
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def _image_encoder(clip: Any) -> Any:
    from transformers import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection(clip.config.vision_config)
    encoder.vision_model.load_state_dict(clip.vision_model.state_dict())
    encoder.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    return encoder.eval()


def _feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def _vae(shape: dict[str, Any]) -> Any:
    import torch
    from diffusers import AutoencoderKL

    levels = len(shape["vae"])
    vae = AutoencoderKL(
        block_out_channels=shape["vae"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=shape["latent_channels"],
        norm_num_groups=shape["groups"],
        sample_size=shape["sample"] * 2 ** (levels - 1),
        scaling_factor=shape["scale"],
    )
    with torch.no_grad():  # pictures with contrast instead of the grey that fresh weights decode to
        vae.decoder.conv_out.weight *= 1.5
    return vae.eval()


def _unet(shape: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    levels = len(shape["unet"])
    return UNet2DConditionModel(
        sample_size=shape["sample"],
        in_channels=shape["latent_channels"],
        out_channels=shape["latent_channels"],
        block_out_channels=shape["unet"],
        layers_per_block=shape["layers"],
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=shape["width"],
        attention_head_dim=shape["head_dim"],
        use_linear_projection=shape["linear"],
        norm_num_groups=shape["groups"],
    ).eval()


def _scheduler(shape: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, PNDMScheduler

    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": shape["prediction"],
    }
    if shape["prediction"] == "v_prediction":
        return DDIMScheduler(**common, clip_sample=False)
    return PNDMScheduler(**common, skip_prk_steps=True)
