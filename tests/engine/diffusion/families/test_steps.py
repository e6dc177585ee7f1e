"""Guidance inside an interval and kept deep features, against loops written out, and the work that they save."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion import families, schedulers
from engine.diffusion.checkpoint import Checkpoint, check_generate, load
from engine.diffusion.families.family import from_latents, tell
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

KINDS = ("digits", "sd15", "xl", "sd3", "dit")
GUIDANCE = 5.0
Forward = Callable[[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def spec(kind: str, **changes: Any) -> GenerateSpec:
    plain = {
        "num_inference_steps": 6,
        "scheduler": "flow_euler" if kind == "sd3" else "ddim",
        "visual_token": "none",
        "guidance_scale": GUIDANCE,
    }
    return GenerateSpec(**plain | changes)


REQUESTS = [Request(f"photo of digit {n}", 50 + n, label=n) for n in range(3)]


def pixels(drawn: list[Drawn]) -> np.ndarray:
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


@pytest.fixture(scope="module")
def pipelines(all_checked: dict[str, Checkpoint]) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in loaded:
            loaded[kind] = load(all_checked[kind], "cpu", "float32")
        return loaded[kind]

    return get


@torch.inference_mode()
def loop(pipeline: Any, asked: GenerateSpec, forward: Forward | None = None) -> np.ndarray:
    """The sampling written out: `forward` predicts from (latents, t, condition), here both sides one after the
    other."""
    family = families.of(pipeline)
    denoiser = getattr(pipeline, family.denoiser)
    scheduler: Any = schedulers.make(asked.scheduler, pipeline.scheduler.config)
    encoder, none = family.encoder(pipeline), [None] * len(REQUESTS)
    given = tell(encoder, [request.prompt for request in REQUESTS], [request.label for request in REQUESTS], none)
    without = tell(encoder, [""] * len(REQUESTS), none, none)
    size, channels = denoiser.config.sample_size, denoiser.config.in_channels
    seeds = [torch.Generator().manual_seed(request.seed) for request in REQUESTS]
    latents = torch.cat([torch.randn((1, channels, size, size), generator=seed) for seed in seeds])
    scheduler.set_timesteps(asked.num_inference_steps)
    first, last = asked.guidance_interval
    if forward is None:

        def forward(latents: torch.Tensor, t: torch.Tensor, told: dict[str, torch.Tensor]) -> torch.Tensor:
            return family.predict(denoiser, latents, t.expand(len(latents)), told)

    for number, t in enumerate(scheduler.timesteps):
        predicted = forward(latents, t, given)
        if first <= number / len(scheduler.timesteps) < last:
            other = forward(latents, t, without)
            predicted = other + asked.guidance_scale * (predicted - other)
        latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
    images = from_latents(pipeline.vae, latents).permute(0, 2, 3, 1)
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (0.5, 1.0)])
def test_guidance_inside_an_interval_equals_the_loop(
    pipelines: Callable[[str], Any], kind: str, interval: tuple[float, float]
) -> None:
    asked = spec(kind, guidance_interval=interval)
    sampler, seen = Sampler(pipelines(kind), asked), []
    denoiser = getattr(sampler.pipeline, families.of(pipelines(kind)).denoiser)
    inner = next(module for name, module in denoiser.named_modules() if name in ("conv_in", "pos_embed"))
    handle = inner.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = pixels(sampler.draw(REQUESTS))
    handle.remove()
    assert seen == [6 if interval[0] <= n / 6 < interval[1] else 3 for n in range(6)]
    assert np.abs(found - loop(pipelines(kind), asked)).max() <= 2
    assert not denoiser._forward_hooks
    assert not denoiser._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_that_holds_all_steps_changes_nothing_and_others_do(
    pipelines: Callable[[str], Any], kind: str
) -> None:
    whole, almost, part = (
        pixels(Sampler(pipelines(kind), spec(kind, guidance_interval=interval)).draw(REQUESTS))
        for interval in ((0.0, 1.0), (0.0, 0.99), (0.4, 0.6))
    )
    assert np.array_equal(whole, almost)
    assert np.abs(whole - part).mean() > 0.1


def test_the_interval_counts_the_steps_that_are_run(pipelines: Callable[[str], Any]) -> None:
    asked = spec("digits", strength=0.5, pairing="own", num_inference_steps=8, guidance_interval=(0.5, 1.0))
    latents = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    sampler, seen = Sampler(pipelines("digits"), asked), []
    handle = sampler.pipeline.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pixels(sampler.draw([Request("one", 1, None, latents)]))
    handle.remove()
    assert seen == [1, 1, 2, 2]


def test_without_guidance_there_is_nothing_to_leave_out(pipelines: Callable[[str], Any]) -> None:
    plain, interval = (
        pixels(Sampler(pipelines("digits"), spec("digits", guidance_scale=1.0, **more)).draw(REQUESTS))
        for more in ({}, {"guidance_interval": (0.3, 0.7)})
    )
    assert np.array_equal(plain, interval)


def shallow(unet: Any, every: int) -> Forward:
    """DeepCache written out for one-sided calls: the first and last block, and between them what the last full step
    gave."""
    kept: dict[int, torch.Tensor] = {}
    calls = [0]

    def forward(latents: torch.Tensor, t: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        states, step, side = condition["states"], calls[0] // 2, calls[0] % 2
        calls[0] += 1
        if step % every == 0:
            with_deep: list[torch.Tensor] = []
            handle = unet.up_blocks[-2].register_forward_hook(lambda module, args, output: with_deep.append(output))
            predicted = unet(latents, t, states, return_dict=False)[0]
            handle.remove()
            kept[side] = with_deep[0]
            return predicted
        emb = unet.time_embedding(unet.time_proj(t.expand(len(latents))))
        first = unet.conv_in(latents)
        _, between = unet.down_blocks[0](first, emb, encoder_hidden_states=states)
        skipped = (first, *between[: len(unet.up_blocks[-1].resnets) - 1])
        last = unet.up_blocks[-1](kept[side], skipped, emb, encoder_hidden_states=states)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(last)))

    return forward


@pytest.mark.parametrize("kind", ["digits", "sd15"])
@pytest.mark.parametrize("every", [2, 4])
def test_kept_features_equal_the_loop_that_leaves_the_deep_blocks_out(
    pipelines: Callable[[str], Any], kind: str, every: int
) -> None:
    asked = spec(kind, cache_interval=every)
    sampler, deep, outer = Sampler(pipelines(kind), asked), [], []
    unet = sampler.pipeline.unet
    handles = [
        unet.mid_block.resnets[0].register_forward_pre_hook(lambda module, args: deep.append(len(args[0]))),
        unet.conv_in.register_forward_pre_hook(lambda module, args: outer.append(len(args[0]))),
    ]
    found = pixels(sampler.draw(REQUESTS))
    assert (len(deep), len(outer)) == (-(-6 // every), 6)
    assert np.array_equal(pixels(sampler.draw(REQUESTS)), found)  # nothing is left of the batch before
    for handle in handles:
        handle.remove()
    assert not any("forward" in vars(block) for block in unet.modules())
    assert np.abs(found - loop(pipelines(kind), asked, shallow(unet, every))).max() <= 2
    assert np.abs(found - pixels(Sampler(pipelines(kind), spec(kind)).draw(REQUESTS))).max() > 0


def test_a_unet_without_a_middle_block_keeps_what_it_has(pipelines: Callable[[str], Any]) -> None:
    pipeline = copy.deepcopy(pipelines("digits"))
    pipeline.unet.mid_block = None
    asked, unet = spec("digits", cache_interval=2), pipeline.unet
    found = pixels(Sampler(pipeline, asked).draw(REQUESTS))
    assert np.abs(found - loop(pipeline, asked, shallow(unet, 2))).max() <= 2
    assert np.abs(found - pixels(Sampler(pipeline, spec("digits")).draw(REQUESTS))).max() > 0


def test_features_are_computed_anew_where_guidance_begins_or_ends(pipelines: Callable[[str], Any]) -> None:
    sampler = Sampler(pipelines("xl"), spec("xl", cache_interval=3, guidance_interval=(0.3, 0.7)))
    seen: list[int] = []
    first = sampler.pipeline.unet.mid_block.resnets[0]
    handle = first.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pixels(sampler.draw(REQUESTS))
    handle.remove()
    assert seen == [3, 6, 3]  # steps 0 and 1 without guidance, 2 to 4 with it, 5 without


@pytest.mark.parametrize("kind", ["sd3", "dit"])
def test_transformers_keep_no_features(all_checked: dict[str, Checkpoint], kind: str) -> None:
    with pytest.raises(ConfigError, match=r"generate.cache_interval: keeps the deep features of a U-Net, and .* is a"):
        check_generate(all_checked[kind], spec(kind, cache_interval=2))
    check_generate(all_checked[kind], spec(kind, guidance_interval=(0.2, 0.8)))
