"""The saved directory opens with stock classes, draws, and holds safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from engine.diffusion.tiny import directory, tiny_models
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.spec.training import PretrainSpec

SPEC = PretrainSpec.model_validate(
    {"clip": {"hidden": 32}, "vae": {"blocks": [8, 16]}, "unet": {"blocks": [16, 32], "prediction": "v_prediction"}}
)
SIZE = 16


@pytest.fixture(scope="module")
def stack() -> directory.Stack:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["photo of one", "photo of two"], SPEC.text_length)
    vae: Any = tiny_models.build_vae(SPEC.vae, SIZE)
    vae.register_to_config(scaling_factor=0.75)
    return directory.Stack(
        tokenizer,
        tiny_models.build_clip(SPEC.clip, tokenizer, SIZE).eval(),
        vae,
        tiny_models.build_unet(SPEC.unet, SPEC.vae, SIZE, SPEC.clip.hidden),
        tiny_models.build_scheduler(SPEC.unet),
    )


@pytest.fixture(scope="module")
def folder(stack: directory.Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    directory.save(stack, path)
    return path


def test_the_stock_pipeline_opens_it_and_draws(folder: Path) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["photo of one", "two"], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, SIZE, SIZE, 3)
    assert np.isfinite(images).all()
    assert pipeline.vae.config.scaling_factor == 0.75
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.tokenizer.model_max_length == SPEC.text_length


def test_its_parts_compute_what_was_saved(folder: Path, stack: directory.Stack) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pixels = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    seen = pipeline.feature_extractor(images=list(pixels.numpy()), return_tensors="pt")["pixel_values"]
    assert torch.allclose(seen, directory.normalise(pixels), atol=1e-6)
    ids = pipeline.tokenizer(["photo of one"], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features = stack.clip.get_image_features(pixel_values=seen).pooler_output
        assert torch.equal(pipeline.image_encoder(seen).image_embeds, features)
        assert torch.equal(pipeline.text_encoder(ids)[0], stack.clip.text_model(ids)[0])


def test_the_whole_clip_lies_beside(folder: Path, stack: directory.Stack) -> None:
    clip = CLIPModel.from_pretrained(folder / "clip", local_files_only=True)
    assert clip.state_dict().keys() == stack.clip.state_dict().keys()
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in stack.clip.state_dict().items())
    assert len(CLIPTokenizer.from_pretrained(folder / "tokenizer")) == clip.config.text_config.vocab_size


def test_weights_are_safetensors_only(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    large = {path.name for path in files if path.suffix not in (".json", ".txt")}
    assert large == {"model.safetensors", "diffusion_pytorch_model.safetensors"}
    assert {path.parent.name for path in files if path.suffix == ".safetensors"} == {
        "clip",
        "image_encoder",
        "text_encoder",
        "unet",
        "vae",
    }
