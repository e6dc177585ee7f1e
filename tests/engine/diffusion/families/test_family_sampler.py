"""Drawing by each family: equal to its stock pipeline, independent of the batch, refused where the sampler is of the
other kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from engine.diffusion import schedulers
from engine.diffusion.checkpoint import Checkpoint, check_generate, load
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from tests.support.families import WIDTHS

TEXT = ("xl", "sd3", "sd3_t5")
WORDS = ("zero", "one", "two", "three")


def spec(kind: str, **changes: Any) -> GenerateSpec:
    scheduler = "flow_euler" if kind.startswith("sd3") else "ddim"
    plain = {"num_inference_steps": 4, "pairing": "own", "scheduler": scheduler, "visual_token": "none"}
    return GenerateSpec(**plain | changes)


def ask(count: int, checkpoint: Checkpoint, width: int | None = None) -> list[Request]:
    """Prompts that repeat; classes, latents and every other token differ."""
    rng = np.random.default_rng(7)
    side = checkpoint.latent_size
    return [
        Request(
            prompt=f"photo of digit {WORDS[n % 4]}",
            seed=1000 + n,
            token=rng.normal(size=width).astype(np.float32) if width and n % 2 else None,
            init_latents=rng.normal(size=(checkpoint.latent_channels, side, side)).astype(np.float32),
            label=n % 10,
        )
        for n in range(count)
    ]


def pixels(drawn: list[Drawn]) -> np.ndarray:
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


def generators(requests: list[Request]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(request.seed) for request in requests]


def integers(images: Any) -> np.ndarray:
    return (np.asarray(images) * 255).round().astype(int)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize(("guidance", "negative"), [(3.0, "bold"), (1.0, "bold"), (2.0, "")])
def test_text_to_image_equals_stock_diffusers(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], kind: str, guidance: float, negative: str
) -> None:
    """SDXL's stock pipeline is not given an empty negative prompt: then its zeros are what is used."""
    requests, theirs = ask(3, checked[kind]), stock(kind)
    settings = spec(kind, guidance_scale=guidance, negative_prompt=negative)
    theirs.scheduler = schedulers.make(settings.scheduler, theirs.scheduler.config)
    expected = theirs(
        [request.prompt for request in requests],
        negative_prompt=[negative] * 3 if negative else None,
        guidance_scale=guidance,
        generator=generators(requests),
        num_inference_steps=4,
        output_type="np",
    ).images
    found = pixels(Sampler(load(checked[kind], "cpu", "float32"), settings).draw(requests))
    assert np.abs(found - integers(expected)).max() <= 1


@pytest.mark.parametrize("kind", TEXT)
def test_image_to_image_equals_stock_diffusers(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], kind: str
) -> None:
    requests, theirs = ask(3, checked[kind]), stock(kind)
    kinds = {"xl": diffusers.StableDiffusionXLImg2ImgPipeline}
    theirs = kinds.get(kind, diffusers.StableDiffusion3Img2ImgPipeline)(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    settings = spec(kind, strength=0.5, guidance_scale=2.0)
    theirs.scheduler = schedulers.make(settings.scheduler, theirs.scheduler.config)
    expected = theirs(
        [request.prompt for request in requests],
        image=torch.from_numpy(np.stack([request.init_latents for request in requests])),
        strength=0.5,
        guidance_scale=2.0,
        generator=generators(requests),
        num_inference_steps=4,
        output_type="np",
    ).images
    found = pixels(Sampler(load(checked[kind], "cpu", "float32"), settings).draw(requests))
    assert np.abs(found - integers(expected)).max() <= 1


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_class_to_image_equals_stock_diffusers(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], guidance: float, scheduler: str
) -> None:
    requests, theirs = ask(3, checked["dit"]), stock("dit")
    theirs.scheduler = schedulers.make(scheduler, theirs.scheduler.config)
    labels = [request.label for request in requests]
    options = {"guidance_scale": guidance, "num_inference_steps": 4, "output_type": "np"}
    expected = theirs(labels, generator=generators(requests), **options).images
    sampler = Sampler(load(checked["dit"], "cpu", "float32"), spec("dit", guidance_scale=guidance, scheduler=scheduler))
    assert np.abs(pixels(sampler.draw(requests)) - integers(expected)).max() <= 1


def test_class_to_image_from_latents_equals_the_formula(checked: dict[str, Checkpoint]) -> None:
    """DDIM by hand, from half of the steps on."""
    pipeline = load(checked["dit"], "cpu", "float32")
    [request] = ask(1, checked["dit"])
    drawn = Sampler(pipeline, spec("dit", strength=0.5, guidance_scale=2.0)).draw([request])
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    alphas, times = scheduler.alphas_cumprod, scheduler.timesteps.tolist()
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(request.seed))
    latents = alphas[times[2]].sqrt() * torch.from_numpy(request.init_latents)[None]
    latents = latents + (1 - alphas[times[2]]).sqrt() * noise
    with torch.no_grad():
        for t in times[2:]:
            labels = torch.tensor([1000, request.label])
            without, given = pipeline.transformer(latents.expand(2, -1, -1, -1), torch.full((2,), t), labels).sample
            eps = (without + 2.0 * (given - without))[:4]
            start = (latents - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
            alpha = alphas[t - 250] if t >= 250 else scheduler.final_alpha_cumprod
            latents = alpha.sqrt() * start + (1 - alpha).sqrt() * eps
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(drawn)[0] - expected).max() <= 1


CASES = [("xl", "euler_a"), ("xl", "dpmsolver++"), ("sd3", "flow_euler"), ("sd3_t5", "flow_heun"), ("dit", "euler_a")]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("kind", "scheduler"), [*CASES, ("dit", "dpmsolver++_sde"), ("dit", "heun")])
def test_a_sample_is_the_same_in_any_batch(
    checked: dict[str, Checkpoint], kind: str, scheduler: str, strength: float
) -> None:
    requests = ask(6, checked[kind], WIDTHS[1] if kind != "dit" else None)
    settings = spec(kind, scheduler=scheduler, strength=strength, num_inference_steps=5)
    sampler = Sampler(load(checked[kind], "cpu", "float32"), settings)
    whole = pixels(sampler.draw(requests))
    backwards = pixels(sampler.draw(requests[::-1]))[::-1]
    ones = np.concatenate([pixels(sampler.draw([request])) for request in requests])
    assert np.abs(whole - backwards).max() <= 2
    assert np.abs(whole - ones).max() <= 2
    assert len({image.tobytes() for image in whole}) == 6


@pytest.mark.parametrize("kind", ["xl", "sd3", "dit"])
def test_seed_and_what_is_told_all_matter(checked: dict[str, Checkpoint], kind: str) -> None:
    token = None if kind == "dit" else np.full(WIDTHS[0], 3.0, np.float32)
    requests = [
        Request("one", 1, label=1),
        Request("one", 2, label=1),
        Request("two", 1, label=2),
        Request("one", 1, token, label=1 if token is not None else 3),
    ]
    sampler = Sampler(load(checked[kind], "cpu", "float32"), spec(kind, guidance_scale=4.0))
    images = pixels(sampler.draw(requests))
    assert min(np.abs(images[0] - image).mean() for image in images[1:]) > 0.01


@pytest.mark.parametrize("kind", ["xl", "sd3", "dit"])
def test_half_precision_is_near_float32(checked: dict[str, Checkpoint], kind: str) -> None:
    exact, half = (
        pixels(Sampler(load(checked[kind], "cpu", dtype), spec(kind)).draw(ask(3, checked[kind])))
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact - half).mean() < 12


def test_latents_of_images_are_shifted_and_scaled(checked: dict[str, Checkpoint]) -> None:
    pipeline = load(checked["sd3"], "cpu", "float32")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    with torch.inference_mode():
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 * 2 - 1
        expected = (pipeline.vae.encode(inputs).latent_dist.mean - 0.06) * 1.5
    found = Sampler(pipeline, spec("sd3")).encode_latents(images)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "sd3",
            {"scheduler": "dpmsolver++"},
            "dpmsolver++ is for checkpoints that were trained by diffusion, Stable Diffusion 3 "
            "was trained by flow matching; set generate.scheduler to flow_euler",
        ),
        (
            "xl",
            {"scheduler": "flow_euler"},
            "flow_euler is for checkpoints that were trained by flow matching, Stable Diffusion "
            "XL was trained by diffusion; set generate.scheduler to dpmsolver++",
        ),
        ("dit", {"scheduler": "flow_heun"}, "DiT was trained by diffusion"),
        ("dit", {"visual_token": "own"}, "generate.visual_token: is own, but the checkpoint is told classes only"),
        ("dit", {"negative_prompt": "bold"}, "generate.negative_prompt: is set"),
        ("sd3", {"num_inference_steps": 3, "strength": 0.3}, "leave nothing to sample"),
        ("sd3", {"scheduler": "flow_eular"}, "did you mean flow_euler?"),
    ],
)
def test_sampling_that_a_family_cannot_do_is_refused_in_one_line(
    checked: dict[str, Checkpoint], kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_generate(checked[kind], spec(kind, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dynamic_shifting_is_for_flow_euler_alone() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    assert schedulers.check_steps("flow_euler", config, 4, 1.0) == 4
    with pytest.raises(
        ConfigError, match=r"flow_heun does not take use_dynamic_shifting \(True\), .*; set it to flow_euler$"
    ):
        schedulers.check_steps("flow_heun", config, 4, 1.0)
