"""A distilled LoRA of the released LCM-LoRA's kind: its modules, its names, its scheduler, four steps without
guidance."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engine.diffusion import lora
from engine.diffusion.checkpoint import Checkpoint, load
from engine.diffusion.sampler import Request, Sampler
from engine.spec.recipe import GenerateSpec
from tests.support.checkpoints import write_lora

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


def as_released(file: Path) -> Path:
    """The file with the names of other trainers, `lora_unet_..._proj_in.lora_down.weight` and `.alpha`."""
    tensors = {}
    for key, tensor in load_file(file).items():
        match = re.fullmatch(r"unet\.(.+?)\.(lora\.down|lora\.up|lora_A|lora_B)\.weight", key)
        assert match, key
        name, side = f"lora_unet_{match[1].replace('.', '_')}", "down" if match[2] in ("lora.down", "lora_A") else "up"
        tensors[f"{name}.lora_{side}.weight"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    renamed = file.with_name("released.safetensors")
    save_file(tensors, renamed, {"format": "pt"})
    return renamed


def test_four_steps_with_a_distilled_lora_equal_stock_diffusers(
    tmp_path: Path, folders: dict[str, Path], inspected: dict[str, Checkpoint]
) -> None:
    file = as_released(write_lora(tmp_path, folders["sd15"], targets=ATTENTION + CONVOLUTION, size=0.1))
    info = lora.check(file, inspected["sd15"])
    assert info.denoiser_modules > 100
    requests = [Request(f"photo of digit {n}", 5 + n) for n in range(3)]
    pipeline = load(inspected["sd15"], "cpu", "float32")
    lora.attach(pipeline, file, 1.0)
    asked = GenerateSpec(scheduler="lcm", num_inference_steps=4, guidance_scale=1.0, visual_token="none")
    found = np.stack([drawn.pixels for drawn in Sampler(pipeline, asked).draw(requests)]).astype(int)

    stock = StableDiffusionPipeline.from_pretrained(folders["sd15"], safety_checker=None)
    stock.scheduler = LCMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    stock.load_lora_weights(str(file.parent), weight_name=file.name)
    stock.fuse_lora()
    stock.set_progress_bar_config(disable=True)
    images = stock(
        [request.prompt for request in requests],
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        guidance_scale=1.0,
        num_inference_steps=4,
        output_type="np",
    ).images
    assert np.abs(found - (images * 255).round()).max() <= 2
