"""Generators in pixels: equal to stock diffusers, both kinds of guidance by hand, image features, images to start from,
any batch."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline, UNet2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from safetensors.torch import load_file, save_file

from engine.diffusion import families, schedulers
from engine.diffusion.checkpoint import Checkpoint, check_generate, inspect, load
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import ConfigError, StorageError
from engine.spec.recipe import FastSpec, GenerateSpec, ModelSpec
from tests.support.families import SIZE, WIDTHS
from tests.support.tiers import slow

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def spec(**changes: Any) -> GenerateSpec:
    plain = {"num_inference_steps": 4, "scheduler": "euler", "visual_token": "none", "guidance_scale": 1.0}
    return GenerateSpec(**plain | changes)


def ask(count: int, *, tokens: bool = False) -> list[Request]:
    rng = np.random.default_rng(7)
    return [
        Request(
            "not read",
            1000 + n,
            rng.normal(size=WIDTHS[0]).astype(np.float32) if tokens and n % 2 else None,
            rng.uniform(-1, 1, (3, SIZE, SIZE)).astype(np.float32),
            n % 10,
        )
        for n in range(count)
    ]


def pixels(drawn: list[Drawn]) -> np.ndarray:
    assert [result.reason for result in drawn] == [None] * len(drawn)
    return np.stack([result.pixels for result in drawn]).astype(int)


def draw(checkpoint: Checkpoint, requests: list[Request], how: FastSpec | None = None, **changes: Any) -> np.ndarray:
    return pixels(Sampler(load(checkpoint, "cpu", "float32"), spec(**changes), how).draw(requests))


def integers(images: torch.Tensor) -> np.ndarray:
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(int)


def first_noise(requests: list[Request]) -> torch.Tensor:
    shape = (1, 3, SIZE, SIZE)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in requests])


@pytest.mark.parametrize("name", ["euler", "dpmsolver++", "heun", "dpmsolver++_sde"])
def test_drawing_by_class_equals_the_stock_pipeline(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], name: str
) -> None:
    """ConsistencyModelPipeline, given the same first noise; noise of each step is drawn for each image by its own
    generator."""
    requests, theirs = ask(3), stock("pixel_plain")
    assert type(theirs) is ConsistencyModelPipeline
    theirs.scheduler = schedulers.make(name, theirs.scheduler.config, "edm")
    sampler = Sampler(load(checked["pixel_plain"], "cpu", "float32"), spec(scheduler=name))
    for n, request in enumerate(requests):
        generator = torch.Generator().manual_seed(request.seed)
        images = theirs(
            batch_size=1, class_labels=n, num_inference_steps=4, generator=generator, output_type="np"
        ).images
        assert np.abs(pixels(sampler.draw([request])) - (images * 255).round()).max() <= 1, n


def test_a_directory_with_features_and_guide_opens_in_stock_diffusers_by_class(
    checked: dict[str, Checkpoint], family_folders: dict[str, Path]
) -> None:
    stock: Any = DiffusionPipeline.from_pretrained(family_folders["pixel"])
    stock.set_progress_bar_config(disable=True)
    [request] = ask(1)
    generator = torch.Generator().manual_seed(request.seed)
    images = stock(batch_size=1, class_labels=0, num_inference_steps=4, generator=generator, output_type="np").images
    found = draw(checked["pixel"], [request])
    assert np.abs(found - (images * 255).round()).max() <= 1


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", schedulers.EDM)
def test_a_sample_is_the_same_in_any_batch(checked: dict[str, Checkpoint], name: str, strength: float) -> None:
    requests = ask(4, tokens=True)
    more = {
        "num_inference_steps": 3,
        "scheduler": name,
        "strength": strength,
        "pairing": "own",
        "visual_token": "own",
        "guidance_scale": 2.0,
    }
    sampler = Sampler(load(checked["pixel"], "cpu", "float32"), spec(**more))
    whole, backwards = pixels(sampler.draw(requests)), pixels(sampler.draw(requests[::-1]))[::-1]
    alone = np.concatenate([pixels(sampler.draw([request])) for request in requests])
    assert np.abs(whole - backwards).max() <= 2
    assert np.abs(whole - alone).max() <= 2
    assert np.abs(whole[0] - whole[2]).max() > 8


def _unet(folder: Path, name: str, projection: str, token: np.ndarray | None) -> Callable[..., torch.Tensor]:
    """D's network of a stock U-Net and projection: time embedding + class vector + projected feature, by its own
    modules."""
    unet: Any = UNet2DModel.from_pretrained(folder, subfolder=name).eval()
    added: torch.Tensor | float = 0.0
    if token is not None:
        encoder: Any = ReduxImageEncoder.from_pretrained(folder, subfolder=projection)
        added = encoder.redux_down(torch.nn.functional.silu(encoder.redux_up(torch.from_numpy(token)[None])))
    table = unet.class_embedding
    unet.class_embedding = torch.nn.Identity()

    def network(taken: torch.Tensor, t: torch.Tensor, label: int, told: bool = True) -> torch.Tensor:
        vector = table(torch.tensor([label])) + (added if told else 0.0)
        return unet(taken, t, class_labels=vector).sample

    return network


@torch.no_grad()
def euler_by_hand(request: Request, predict: Forward, steps: int = 4) -> np.ndarray:
    """Euler's method on the noise levels of arXiv 2206.00364, with its preconditioning."""
    high, low, d = 80 ** (1 / 7), 0.002 ** (1 / 7), 0.5
    sigmas = [(high + n / (steps - 1) * (low - high)) ** 7 for n in range(steps)] + [0.0]
    x = first_noise([request]) * (80**2 + 1) ** 0.5
    for s, then in itertools.pairwise(sigmas):
        output = predict(x / (s**2 + d**2) ** 0.5, torch.tensor(np.log(s) / 4, dtype=torch.float32))
        clean = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2) ** 0.5 * output
        x = x + (then - s) * (x - clean) / s
    return integers(x)


@pytest.mark.parametrize("on", ["both", "image", "text"])
@pytest.mark.parametrize("with_token", [True, False])
def test_classifier_free_guidance_is_the_formula(
    checked: dict[str, Checkpoint], family_folders: dict[str, Path], with_token: bool, on: str
) -> None:
    request = ask(2, tokens=True)[1]
    token = request.token if with_token else None
    network = _unet(family_folders["pixel"], "unet", "image_projection", token)
    label = {"both": 10, "text": 10, "image": 1}[on]

    def predict(taken: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        given, without = network(taken, t, 1), network(taken, t, label, told=on == "text")
        return without + 3.0 * (given - without)

    asked = Request("", request.seed, token, None, 1)
    found = draw(checked["pixel"], [asked], guidance_scale=3.0, guidance_on=on, visual_token="own")
    assert np.abs(found - euler_by_hand(request, predict)).max() <= 1


@pytest.mark.parametrize("with_token", [True, False])
def test_autoguidance_is_the_formula(
    checked: dict[str, Checkpoint], family_folders: dict[str, Path], with_token: bool
) -> None:
    """D_bad + w (D_good - D_bad) of arXiv 2406.02507, both under the same conditions, each with its own projection."""
    request = ask(2, tokens=True)[1]
    token = request.token if with_token else None
    good = _unet(family_folders["pixel"], "unet", "image_projection", token)
    bad = _unet(family_folders["pixel"], "guide", "guide_projection", token)

    def predict(taken: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weak = bad(taken, t, 1)
        return weak + 2.5 * (good(taken, t, 1) - weak)

    asked = Request("", request.seed, token, None, 1)
    found = draw(checked["pixel"], [asked], guidance="auto", guidance_scale=2.5, visual_token="own")
    assert np.abs(found - euler_by_hand(request, predict)).max() <= 1
    plain = draw(checked["pixel"], [asked], guidance="auto", guidance_scale=1.0, visual_token="own")
    assert np.array_equal(plain, draw(checked["pixel"], [asked], guidance_scale=1.0, visual_token="own"))
    assert np.abs(plain - found).max() > 2


def test_an_image_feature_changes_the_sample_and_zeros_are_none(checked: dict[str, Checkpoint]) -> None:
    [request] = ask(2, tokens=True)[1:]
    tokens = (None, np.zeros(WIDTHS[0], np.float32), request.token, 2 * request.token)
    images = [draw(checked["pixel"], [Request("", 5, token, None, 3)], visual_token="own")[0] for token in tokens]
    assert np.array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).max() > 2
    assert np.abs(images[2] - images[3]).max() > 2


def test_what_it_cannot_be_told_is_refused(checked: dict[str, Checkpoint]) -> None:
    for checkpoint, width, message in (
        (checked["pixel_plain"], WIDTHS[0], "told classes only, no image features"),
        (checked["pixel"], 5, r"conditions\.features: the CLIP image features have 5 numbers"),
    ):
        encoder = families.of(pipeline := load(checkpoint, "cpu", "float32")).encoder(pipeline)
        with pytest.raises(ConfigError, match=message):
            encoder.place(width)
        with pytest.raises(ConfigError, match="knows 10 classes, none of them number 10"):
            encoder.encode("", 10)
    with pytest.raises(ConfigError, match=r"generate\.negative_prompt"):
        check_generate(checked["pixel"], spec(negative_prompt="bold"))
    with pytest.raises(ConfigError, match=r"generate\.guidance: is auto, but the checkpoint has no weaker model"):
        check_generate(checked["pixel_plain"], spec(guidance="auto"))
    assert check_generate(checked["pixel"], spec(guidance="auto")) == []
    for name in ("ddim", "unipc", "dpmsolver++_karras", "flow_euler"):
        with pytest.raises(ConfigError, match=r"EDM in pixels was trained under EDM; set generate\.scheduler to dpm"):
            check_generate(checked["pixel"], spec(scheduler=name))


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_strength_begins_at_a_noised_image(checked: dict[str, Checkpoint], name: str) -> None:
    """Of 10 steps at strength 0.5 the last 5 are run, from z + s e; written out by Euler's method."""
    [request] = ask(1)
    network = _unet(checked["pixel"].path, "unet", "image_projection", None)
    high, low, d = 80 ** (1 / 7), 0.002 ** (1 / 7), 0.5
    sigmas = [*[(high + n / 9 * (low - high)) ** 7 for n in range(10)][5:], 0.0]

    @torch.no_grad()
    def slope(x: torch.Tensor, s: float) -> torch.Tensor:
        t = torch.tensor(np.log(s) / 4, dtype=torch.float32)
        clean = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2) ** 0.5 * network(x / (s**2 + d**2) ** 0.5, t, 0)
        return (x - clean) / s

    x = torch.from_numpy(request.init_latents)[None] + sigmas[0] * first_noise([request])
    for s, then in itertools.pairwise(sigmas):
        first = slope(x, s)
        moved = x + (then - s) * first
        x = moved if name == "euler" or not then else x + (then - s) * (first + slope(moved, then)) / 2
    found = draw(checked["pixel"], [request], scheduler=name, strength=0.5, num_inference_steps=10, pairing="own")
    assert np.abs(found - integers(x)).max() <= 1


def test_images_are_their_own_latents(checked: dict[str, Checkpoint]) -> None:
    real = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    for dtype in ("float32", "bfloat16"):
        latents = Sampler(load(checked["pixel"], "cpu", dtype), spec()).encode_latents(real)
        np.testing.assert_allclose(latents, real.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("name", schedulers.EDM)
@pytest.mark.parametrize("steps", [1, 3, 18])
def test_every_sampler_is_finite(checked: dict[str, Checkpoint], name: str, steps: int) -> None:
    check_generate(checked["pixel"], spec(scheduler=name, num_inference_steps=steps))
    drawn = draw(checked["pixel"], ask(2), scheduler=name, num_inference_steps=steps, guidance_scale=2.0)
    assert drawn.std() > 0


@pytest.mark.parametrize("guidance", ["cfg", "auto"])
def test_bfloat16_draws_nearly_the_same(checked: dict[str, Checkpoint], guidance: str) -> None:
    asked = spec(guidance=guidance, guidance_scale=1.5, num_inference_steps=8, scheduler="heun")
    both = [
        pixels(Sampler(load(checked["pixel"], "cpu", dtype), asked).draw(ask(4))) for dtype in ("float32", "bfloat16")
    ]
    assert np.abs(both[0] - both[1]).mean() < 4
    assert not np.array_equal(*both)
    assert len(np.unique(both[1])) > 128  # images themselves are not rounded to eight bits


@pytest.mark.parametrize("guidance", ["cfg", "auto"])
def test_fast_settings_change_rounding_only(checked: dict[str, Checkpoint], guidance: str) -> None:
    more: dict[str, Any] = {"guidance": guidance, "guidance_scale": 2.0}
    expected = draw(checked["pixel"], ask(5), **more)
    how = FastSpec(channels_last="on", attention="math", decode_batch=2)
    assert np.abs(draw(checked["pixel"], ask(5), how, **more) - expected).max() <= 2


def test_kept_features_leave_deep_blocks_out_and_guidance_has_its_interval(checked: dict[str, Checkpoint]) -> None:
    more: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 2.0}
    kept = Sampler(load(checked["pixel"], "cpu", "float32"), spec(cache_interval=3, **more))
    deep: list[int] = []
    kept.pipeline.unet.mid_block.resnets[0].register_forward_pre_hook(lambda module, args: deep.append(len(args[0])))
    images = pixels(kept.draw(ask(3)))
    assert deep == [6, 6]
    plain = draw(checked["pixel"], ask(3), **more)
    assert np.abs(images - plain).max() > 0
    within = Sampler(load(checked["pixel"], "cpu", "float32"), spec(guidance_interval=(0.5, 1.0), **more))
    seen: list[int] = []
    within.pipeline.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pixels(within.draw(ask(3)))
    assert seen == [3, 3, 3, 6, 6, 6]


@slow
def test_a_compiled_unet_draws_the_same(
    checked: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    asked = spec(guidance_scale=2.0, visual_token="own")
    requests = ask(4, tokens=True)
    plain = pixels(Sampler(load(checked["pixel"], "cpu", "float32"), asked).draw(requests))
    sampler = Sampler(load(checked["pixel"], "cpu", "float32"), asked, FastSpec(compile="default"))
    sampler.expect(4)
    torch._dynamo.reset()
    assert np.abs(pixels(sampler.draw(requests)) - plain).max() <= 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("part", ["guide", "guide_projection", "image_projection", "unet"])
def test_a_part_that_was_changed_after_the_check_is_not_loaded(
    family_folders: dict[str, Path], tmp_path: Path, part: str
) -> None:
    folder = Path(shutil.copytree(family_folders["pixel"], tmp_path / "pixel"))
    found = inspect(ModelSpec(checkpoint=str(folder)), SIZE)
    path = folder / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(StorageError, match="is not the file that the run began with"):
        load(found, "cpu", "float32")
    assert inspect(ModelSpec(checkpoint=str(folder)), SIZE).digest != found.digest
