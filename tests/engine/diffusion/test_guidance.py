"""What the guidance pushes away from: both conditions, the text or the visual token, against stock diffusers called by
hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine.diffusion import schedulers
from engine.diffusion.checkpoint import Checkpoint, load
from engine.diffusion.sampler import Request, Sampler
from engine.spec.recipe import GenerateSpec

NEGATIVE, GUIDANCE = "bold", 4.0
TOKENS = np.random.default_rng(3).normal(scale=2, size=(3, 64)).astype(np.float32)
REQUESTS = [Request(f"photo of digit {word}", 10 + n, TOKENS[n]) for n, word in enumerate(("zero", "one", "two"))]


@pytest.fixture(scope="module")
def pipeline(inspected: dict[str, Checkpoint]) -> Any:
    return load(inspected["digits"], "cpu", "float32")


def draw(pipeline: Any, requests: list[Request], **changes: Any) -> np.ndarray:
    settings = {"num_inference_steps": 4, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE, **changes}
    return np.stack([drawn.pixels for drawn in Sampler(pipeline, GenerateSpec(**settings)).draw(requests)]).astype(int)


def by_hand(folder: Path, on: str) -> np.ndarray:
    """Stock diffusers, told of both sides of the guidance."""
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.scheduler = schedulers.make("dpmsolver++", stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    prompts = [request.prompt for request in REQUESTS]
    with torch.no_grad():
        given = stock.encode_prompt(prompts, "cpu", 1, False)[0]
        text, image = given.clone(), torch.from_numpy(TOKENS)
        negative = stock.encode_prompt([NEGATIVE] * 3, "cpu", 1, False)[0]
    given[:, -1] = image
    if on == "image":
        negative = text
    if on == "text":
        negative[:, -1] = image
    images = stock(
        prompt_embeds=given,
        negative_prompt_embeds=negative,
        generator=[torch.Generator().manual_seed(request.seed) for request in REQUESTS],
        guidance_scale=GUIDANCE,
        num_inference_steps=4,
        output_type="np",
    ).images
    return (images * 255).round().astype(int)


@pytest.mark.parametrize("on", ["both", "text", "image"])
def test_guidance_equals_stock_diffusers(pipeline: Any, folders: dict[str, Path], on: str) -> None:
    assert np.abs(draw(pipeline, REQUESTS, guidance_on=on) - by_hand(folders["digits"], on)).max() <= 1


def test_the_three_ways_differ_and_the_default_is_both(pipeline: Any) -> None:
    both, text, image = (draw(pipeline, REQUESTS, guidance_on=on) for on in ("both", "text", "image"))
    assert np.array_equal(draw(pipeline, REQUESTS), both)
    assert min(np.abs(a - b).mean() for a, b in ((both, text), (both, image), (text, image))) > 0.5


def test_without_a_visual_token_guidance_on_the_text_is_guidance_on_all_there_is(pipeline: Any) -> None:
    requests = [Request(request.prompt, request.seed) for request in REQUESTS]
    both, text = (draw(pipeline, requests, visual_token="none", guidance_on=on) for on in ("both", "text"))
    assert np.array_equal(both, text)
