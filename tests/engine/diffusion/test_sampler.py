"""Drawing: equal to stock diffusers, independent of the batch, and every fault confined to its own sample."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from engine.diffusion import schedulers
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import ClusterError, ConfigError, DataError
from engine.spec.recipe import GenerateSpec, ModelSpec
from tests.support.checkpoints import write_checkpoint

WORDS = ("zero", "one", "two", "three")
Pipelines = Callable[..., Any]


@pytest.fixture(scope="module")
def pipelines(inspected: dict[str, Checkpoint]) -> Pipelines:
    """`pipelines(family, dtype)`: loaded once each; tests put back what they change."""
    loaded: dict[tuple[str, str], Any] = {}

    def get(family: str = "digits", dtype: str = "float32") -> Any:
        if (family, dtype) not in loaded:
            loaded[family, dtype] = load(inspected[family], "cpu", dtype)
        return loaded[family, dtype]

    return get


def spec(**changes: Any) -> GenerateSpec:
    return GenerateSpec(**{"num_inference_steps": 4, "pairing": "own"} | changes)


def ask(count: int, *, width: int = 64, latent: tuple[int, int, int] = (4, 4, 4)) -> list[Request]:
    """Prompts that repeat, tokens and latents that differ."""
    rng = np.random.default_rng(7)
    return [
        Request(
            prompt=f"photo of digit {WORDS[n % 4]}",
            seed=1000 + n,
            token=rng.normal(size=width).astype(np.float32) if n % 3 else None,
            init_latents=rng.normal(size=latent).astype(np.float32),
        )
        for n in range(count)
    ]


def pixels(drawn: list[Drawn]) -> np.ndarray:
    """(N, H, W, 3) as signed integers, all of them good."""
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call `hook(module, args, kwargs)` before each forward pass."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def plain_call(
    folder: Path, name: str, requests: list[Request], kind: Any = StableDiffusionPipeline, **arguments: Any
) -> np.ndarray:
    """What a user of diffusers gets for the prompts, as integers 0 to 255."""
    stock = kind.from_pretrained(folder, safety_checker=None)
    stock.scheduler = schedulers.make(name, stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    prompts = [request.prompt for request in requests]
    images = stock(prompts, generator=generators, output_type="np", num_inference_steps=4, **arguments).images
    return (images * 255).round().astype(int)


@pytest.mark.parametrize(
    ("family", "guidance", "negative"),
    [("digits", 2.0, "bold"), ("digits", 1.0, "bold"), ("sd15", 3.0, ""), ("sd21", 2.0, "a thin one")],
)
def test_text_to_image_equals_stock_diffusers(
    pipelines: Pipelines, folders: dict[str, Path], family: str, guidance: float, negative: str
) -> None:
    requests = [Request(f"photo of digit {word}", 2**64 - 1 - n) for n, word in enumerate(WORDS[:3])]
    sampler = Sampler(pipelines(family), spec(guidance_scale=guidance, negative_prompt=negative))
    expected = plain_call(
        folders[family], "dpmsolver++", requests, guidance_scale=guidance, negative_prompt=[negative] * 3
    )
    assert np.abs(pixels(sampler.draw(requests)) - expected).max() <= 1


def test_image_to_image_equals_stock_diffusers(pipelines: Pipelines, folders: dict[str, Path]) -> None:
    requests = [Request(request.prompt, request.seed, None, request.init_latents) for request in ask(3)]
    sampler = Sampler(pipelines(), spec(strength=0.6, scheduler="euler_a"))
    expected = plain_call(
        folders["digits"],
        "euler_a",
        requests,
        StableDiffusionImg2ImgPipeline,
        image=torch.from_numpy(np.stack([request.init_latents for request in requests])),
        strength=0.6,
        guidance_scale=2.0,
    )
    assert np.abs(pixels(sampler.draw(requests)) - expected).max() <= 1


@pytest.mark.parametrize("channels", [3, 8])
def test_image_to_image_with_other_latent_channels_equals_the_formula(tmp_path: Path, channels: int) -> None:
    """DDIM by hand: noise the latent to the first step that is run, denoise with guidance, decode."""
    folder = write_checkpoint(tmp_path, "digits", latent_channels=channels)
    pipeline = load(inspect(ModelSpec(checkpoint=str(folder)), 8), "cpu", "float32")
    [request] = ask(1, latent=(channels, 4, 4))
    drawn = Sampler(pipeline, spec(scheduler="ddim", strength=0.5)).draw([request])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    with torch.inference_mode():
        embeds = torch.cat([pipeline.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in ("", request.prompt)])
        noise = torch.randn((1, channels, 4, 4), generator=torch.Generator().manual_seed(request.seed))
        alphas = scheduler.alphas_cumprod
        t = scheduler.timesteps[2]
        latents = alphas[t].sqrt() * torch.from_numpy(request.init_latents)[None] + (1 - alphas[t]).sqrt() * noise
        for t in scheduler.timesteps[2:]:
            without, given = pipeline.unet(latents.expand(2, -1, -1, -1), t, embeds).sample
            eps = without + 2.0 * (given - without)
            start = (latents - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
            before = t - 250
            alpha = alphas[before] if before >= 0 else scheduler.final_alpha_cumprod
            latents = alpha.sqrt() * start + (1 - alpha).sqrt() * eps
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(drawn)[0] - expected).max() <= 1


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_batch_sizes_change_the_last_bits_only_and_equal_batches_nothing(pipelines: Pipelines, strength: float) -> None:
    requests = ask(32)
    sampler = Sampler(pipelines(), spec(strength=strength))
    whole = pixels(sampler.draw(requests))
    sevens = np.concatenate([pixels(sampler.draw(requests[start : start + 7])) for start in range(0, 32, 7)])
    ones = np.concatenate([pixels(sampler.draw([request])) for request in requests[::5]])
    assert np.abs(whole - sevens).max() <= 2
    assert np.abs(whole[::5] - ones).max() <= 2
    fresh = Sampler(pipelines(), spec(strength=strength))
    assert np.array_equal(pixels(fresh.draw(requests)), whole)
    assert np.array_equal(pixels(fresh.draw(requests[:7])), sevens[:7])
    assert len({image.tobytes() for image in whole}) == 32


def test_the_visual_token_the_seed_and_the_prompt_all_matter(pipelines: Pipelines) -> None:
    sampler, token = Sampler(pipelines(), spec()), np.full(64, 3.0, np.float32)
    requests = [
        Request("one", 1),
        Request("one", 2),
        Request("two", 1),
        Request("one", 1, token),
        Request("one", 1, -token),
    ]
    images = pixels(sampler.draw(requests))
    differences = [np.abs(images[0] - image).mean() for image in images[1:]]
    assert min(differences) > 0.05
    assert np.abs(images[3] - images[4]).mean() > 0.05


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 1), (1.0, 1), (1.5, 2)])
def test_without_guidance_there_is_no_unconditional_pass(pipelines: Pipelines, guidance: float, passes: int) -> None:
    sampler, seen = Sampler(pipelines(), spec(guidance_scale=guidance)), []
    with hooked(sampler.pipeline.unet, lambda module, args, kwargs: seen.append(len(args[0]))):
        pixels(sampler.draw(ask(3)))
    assert seen == [3 * passes] * 4


def test_steps_run_are_the_share_that_strength_says(pipelines: Pipelines) -> None:
    sampler, seen = Sampler(pipelines(), spec(num_inference_steps=8, strength=0.75)), []
    with hooked(sampler.pipeline.unet, lambda module, args, kwargs: seen.append(int(args[1]))):
        pixels(sampler.draw(ask(2)))
    assert len(seen) == 6


def test_only_the_prompt_that_raises_is_lost(pipelines: Pipelines) -> None:
    requests = ask(6)
    sampler = Sampler(pipelines(), spec())
    expected = pixels(sampler.draw(requests))
    requests[4] = Request("lone surrogate \ud800", 1)
    drawn = sampler.draw(requests)
    assert drawn[4].pixels is None
    assert drawn[4].reason is not None
    assert drawn[4].reason.startswith("error: ")
    assert "\n" not in drawn[4].reason
    rest = [0, 1, 2, 3, 5]
    assert np.abs(pixels([drawn[n] for n in rest]) - expected[rest]).max() <= 2


def test_a_missing_latent_and_a_broken_token_are_errors_of_their_samples(pipelines: Pipelines) -> None:
    requests = ask(4)
    requests[1] = Request("one", 1, None, None)
    requests[2] = Request("one", 1, np.full(64, np.inf, np.float32), requests[0].init_latents)
    reasons = [drawn.reason for drawn in Sampler(pipelines(), spec(strength=0.6)).draw(requests)]
    assert reasons[0] is None
    assert reasons[3] is None
    assert reasons[1] == "error: ValueError: strength below 1 needs an initial latent of shape (4, 4, 4)"
    assert reasons[2] == "error: ValueError: the visual token is not finite"


def test_features_of_another_width_stop_the_run(pipelines: Pipelines) -> None:
    with pytest.raises(ConfigError, match="7 numbers"):
        Sampler(pipelines(), spec()).draw([Request("one", 1, np.ones(7, np.float32))])


def test_non_finite_latents_are_found_and_touch_no_neighbour(pipelines: Pipelines) -> None:
    requests = ask(5)
    sampler = Sampler(pipelines(), spec(strength=0.6))
    expected = pixels(sampler.draw(requests))
    requests[3] = Request("one", 1, None, np.full((4, 4, 4), np.nan, np.float32))
    drawn = sampler.draw(requests)
    assert drawn[3] == Drawn(None, "non_finite_latents")
    rest = [0, 1, 2, 4]
    assert np.array_equal(pixels([drawn[n] for n in rest]), expected[rest])


@contextmanager
def scaled(parameter: torch.Tensor, factor: float) -> Iterator[None]:
    before = parameter.detach().clone()
    parameter.data.mul_(factor)
    try:
        yield
    finally:
        parameter.data.copy_(before)


def test_non_finite_pixels_are_found(pipelines: Pipelines) -> None:
    pipeline = pipelines()
    with scaled(pipeline.vae.decoder.conv_out.weight, float("inf")):
        assert {drawn.reason for drawn in Sampler(pipeline, spec()).draw(ask(2))} == {"non_finite_pixels"}


def test_a_vae_that_overflows_in_float16_is_run_once_more_in_float32(pipelines: Pipelines) -> None:
    pipeline = pipelines("digits", "float16")
    requests = ask(3)
    with scaled(pipeline.vae.decoder.conv_out.weight, 50_000):
        seen: list[torch.dtype] = []
        sampler = Sampler(pipeline, spec())
        with hooked(pipeline.vae.decoder, lambda module, args, kwargs: seen.append(args[0].dtype)):
            images = pixels(sampler.draw(requests))
        assert seen == [torch.float16, torch.float32]
        assert pipeline.vae.dtype == torch.float16
    assert np.isin(images, [0, 255]).mean() > 0.9


def test_an_image_that_overflows_in_float16_is_encoded_once_more_in_float32(pipelines: Pipelines) -> None:
    """Only that image: the others keep their half precision."""
    pipeline, exact = pipelines("digits", "float16"), pipelines("digits", "float32")
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (128, 255, 127)])
    plain = Sampler(pipeline, spec()).encode_latents(images)
    with scaled(pipeline.vae.encoder.conv_in.weight, 150_000), scaled(exact.vae.encoder.conv_in.weight, 150_000):
        seen: list[tuple[torch.dtype, int]] = []
        with hooked(pipeline.vae.encoder, lambda module, args, kwargs: seen.append((args[0].dtype, len(args[0])))):
            found = Sampler(pipeline, spec()).encode_latents(images)
        expected = Sampler(exact, spec()).encode_latents(images)
    assert seen[0] == (torch.float16, 3)
    assert [dtype for dtype, _ in seen] == [torch.float16, torch.float32]
    assert seen[1][1] < 3
    assert pipeline.vae.dtype == torch.float16
    assert np.isfinite(plain).all()
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_an_image_that_is_not_finite_in_float32_either_stops_the_run(pipelines: Pipelines) -> None:
    pipeline = pipelines("digits", "float16")
    with scaled(pipeline.vae.encoder.conv_out.weight, float("inf")), pytest.raises(DataError, match="not finite"):
        Sampler(pipeline, spec()).encode_latents(np.full((1, 8, 8, 3), 200, np.uint8))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(pipelines: Pipelines, dtype: str) -> None:
    exact, half = (pixels(Sampler(pipelines("digits", name), spec()).draw(ask(4))) for name in ("float32", dtype))
    assert np.abs(exact - half).mean() < 12


def fail_above(limit: int, error: Exception, seen: list[int]) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(len(args[0]))
        if len(args[0]) > limit:
            raise error

    return hook


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(pipelines: Pipelines, error: Exception) -> None:
    requests, seen = ask(11), []
    sampler = Sampler(pipelines(), spec(guidance_scale=1.0, num_inference_steps=1))
    expected = pixels(sampler.draw(requests))
    with hooked(sampler.pipeline.unet, fail_above(3, error, seen)):
        assert np.abs(pixels(sampler.draw(requests)) - expected).max() <= 2
        assert seen == [11, 5, 2, 2, 2, 2, 2, 1]
        seen.clear()
        pixels(sampler.draw(requests[:4]))
        assert seen == [2, 2]


def test_one_image_that_does_not_fit_stops_the_run(pipelines: Pipelines) -> None:
    sampler = Sampler(pipelines(), spec())
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with (
        hooked(sampler.pipeline.unet, fail_above(0, error, [])),
        pytest.raises(ClusterError, match=r"device memory: 1 image\(s\) do not fit: .*2 GiB"),
    ):
        sampler.draw(ask(4))


def test_a_fault_of_the_device_is_raised_and_not_bisected(pipelines: Pipelines) -> None:
    sampler, seen = Sampler(pipelines(), spec()), []
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with hooked(sampler.pipeline.unet, fail_above(0, error, seen)), pytest.raises(torch.AcceleratorError):
        sampler.draw(ask(4))
    assert len(seen) == 1


@pytest.mark.parametrize("family", ["digits", "sd15"])
def test_latents_of_images_are_the_scaled_posterior_mean(pipelines: Pipelines, family: str) -> None:
    pipeline = pipelines(family)
    size = {"digits": 8, "sd15": 64}[family]
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    with torch.inference_mode():
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 * 2 - 1
        expected = pipeline.vae.encode(inputs).latent_dist.mean * pipeline.vae.config.scaling_factor
    found = Sampler(pipeline, spec()).encode_latents(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_images_are_drawn_at_the_size_of_the_checkpoint_even_from_old_directories(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Pipelines reset the latent size of U-Nets that name a diffusers release before 0.9, as Stable Diffusion 1.5
    does."""
    folder = Path(shutil.copytree(folders["digits"], tmp_path / "old"))
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_diffusers_version": "0.6.0"}))
    pipeline = load(inspect(ModelSpec(checkpoint=str(folder)), 24), "cpu", "float32")
    for strength in (1.0, 0.5, 1.0):
        sampler = Sampler(pipeline, spec(strength=strength, num_inference_steps=2))
        assert pixels(sampler.draw(ask(1, latent=(4, 12, 12)))).shape == (1, 24, 24, 3)


def test_sampling_that_leaves_no_step_is_refused(pipelines: Pipelines) -> None:
    with pytest.raises(ConfigError, match=r"generate\.strength"):
        Sampler(pipelines(), spec(num_inference_steps=2, strength=0.4))


def test_an_empty_batch_is_an_empty_list(pipelines: Pipelines) -> None:
    assert Sampler(pipelines(), spec()).draw([]) == []
