"""Counts of arithmetic against torch's own counter on the networks themselves, and the plan's lines that come of
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.diffusion.tiny import pixelmodels, tiny_models
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.spec.training import ClipSpec, DitSpec, PixelSpec, UNetSpec, VaeSpec
from engine.training import effort
from pipelines.plan import generator_time
from tests.support.training import pixel_spec, tiny_spec


def counted(run: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (PixelSpec(), 8),
        (PixelSpec(blocks=(32, 64, 64), layers=2, attention=(8, 16)), 32),
        (PixelSpec(blocks=(16, 16), attention=(4,), head_dim=8, layers=3), 8),
    ],
)
def test_a_unet_in_pixels(spec: PixelSpec, size: int) -> None:
    unet: Any = pixelmodels.build_unet(spec, size, 10)
    labels = torch.zeros(1, dtype=torch.int64)
    found = counted(lambda: unet(torch.zeros(1, 3, size, size), torch.zeros(1), class_labels=labels))
    assert effort.pixel(spec, size) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(
    ("spec", "vae", "size"),
    [
        (UNetSpec(), VaeSpec(), 8),
        (UNetSpec(blocks=(32, 64, 64), layers=2), VaeSpec(blocks=(16, 32), layers=2, latent_channels=3), 32),
    ],
)
def test_a_latent_unet_and_its_vae(spec: UNetSpec, vae: VaeSpec, size: int) -> None:
    side, channels = tiny_models.latent_size(vae, size), vae.latent_channels
    unet: Any = tiny_models.build_unet(spec, vae, size, 64)
    latents = torch.zeros(1, channels, side, side)
    found = counted(lambda: unet(latents, torch.zeros(1), torch.zeros(1, 16, 64)))
    assert effort.unet(spec, channels, side, 64, 16) == pytest.approx(found, rel=0.03)
    own: Any = tiny_models.build_vae(vae, size)
    assert effort.vae(vae, size) == pytest.approx(counted(lambda: own(torch.zeros(1, 3, size, size))), rel=0.02)
    assert effort.decoder(vae, size) == pytest.approx(counted(lambda: own.decode(latents)), rel=0.02)


def test_a_transformer_and_a_clip() -> None:
    dit: Any = tiny_models.build_dit(DitSpec(), VaeSpec(), 8)
    labels = torch.zeros(1, dtype=torch.int64)
    found = counted(lambda: dit(torch.zeros(1, 4, 4, 4), timestep=torch.zeros(1), class_labels=labels))
    assert effort.dit(DitSpec(), 4, 4) == pytest.approx(found, rel=0.05)
    spec = ClipSpec()
    clip: Any = tiny_models.build_clip(spec, train_tokenizer(["a b"], 16), 8)
    words, mask = torch.zeros(1, 16, dtype=torch.int64), torch.ones(1, 16, dtype=torch.int64)
    images = torch.zeros(1, 3, 8, 8)
    found = counted(lambda: clip(input_ids=words, attention_mask=mask, pixel_values=images))
    assert effort.clip(spec, 8, 16) == pytest.approx(found, rel=0.05)


def test_a_training_is_three_forward_passes_a_step_and_its_readings() -> None:
    for spec in (tiny_spec(), pixel_spec(held_out=0.25)):
        each, whole = effort.forward(spec), effort.training(spec, 24)
        assert whole["clip"] == 3 * 8 * 12 * each["clip"]
        last = list(whole)[-1]
        readings = 8 * (512 + 512) + 4 * 512 if spec.pretrain.held_out else 0
        assert whole[last] == pytest.approx((3 * 8 * 8 + readings) * each[last])
    assert set(effort.forward(tiny_spec())) == {"clip", "vae", "unet"}
    assert set(effort.forward(pixel_spec())) == {"clip", "pixel"}


def test_a_sample_is_its_evaluations() -> None:
    one = effort.forward(pixel_spec())["pixel"]
    for scheduler, steps, scale, evaluations in (("euler", 7, 1.0, 7), ("heun", 7, 1.0, 13), ("heun", 7, 2.0, 26)):
        spec = pixel_spec({"scheduler": scheduler, "num_inference_steps": steps, "guidance_scale": scale})
        assert effort.sample(spec) == pytest.approx(evaluations * one)


def test_the_plan_says_so() -> None:
    rows = dict(generator_time(tiny_spec(), None, 24))
    assert rows["training the generator"].startswith("about ")
    assert "(clip 1 s, vae 1 s, unet 1 s), within a factor of two" in rows["training the generator"]
    assert rows["drawing"].startswith("about 0.0")
    longer = tiny_spec(unet={"steps": 10**7})
    assert "hours" in dict(generator_time(longer, None, 24))["training the generator"]
