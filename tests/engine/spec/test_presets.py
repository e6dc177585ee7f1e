"""Settings that fit the images: what is filled in, what a recipe says stays, and what is left for the validation to
refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import spec as specs
from engine.errors import ConfigError
from engine.spec import RunSpec
from engine.spec.load import validate
from engine.spec.training import ClipSpec, PixelSpec, UNetSpec, VaeSpec, ViewsSpec

RECIPES = Path(__file__).resolve().parents[3] / "pipelines" / "recipes"


def recipe(size: Any = 8, **sections: Any) -> dict[str, Any]:
    return {"name": "t", "source": {"kind": "digits"}, "images": {"size": size}, **sections}


def is_latent(spec: RunSpec) -> bool:
    """Whether nothing of a generator in pixels was filled in."""
    token = spec.generate.visual_token
    untouched = (spec.pretrain.pixel, spec.pretrain.views, spec.pretrain.held_out) == (PixelSpec(), ViewsSpec(), 0)
    return spec.pretrain.space == "latent" and untouched and spec.generate.guidance == "cfg" and token != "none"


@pytest.mark.parametrize(
    ("size", "blocks", "attention", "steps", "lr", "patch"),
    [
        (8, (32, 64), (), 1500, 2e-3, 2),
        (16, (32, 64, 96), (), 3000, 2e-3, 4),
        (24, (32, 64, 128), (6,), 4000, 1e-3, 8),
        (32, (32, 64, 128), (8,), 4000, 1e-3, 8),
        (40, (32, 64, 96, 128), (5,), 6000, 1e-3, 8),
        (64, (32, 64, 96, 128), (8,), 6000, 1e-3, 16),
    ],
)
def test_up_to_64_pixels_the_generator_is_in_pixels(
    size: int, blocks: tuple[int, ...], attention: tuple[int, ...], steps: int, lr: float, patch: int
) -> None:
    spec = validate(recipe(size))
    assert spec.pretrain.kind == "pixel"
    assert spec.pretrain.pixel == PixelSpec(blocks=blocks, attention=attention, steps=steps, batch=64, lr=lr)
    assert spec.pretrain.clip == ClipSpec(patch=patch)
    assert spec.pretrain.views == ViewsSpec(probability=0.5)
    assert spec.pretrain.held_out == 0.1
    assert (spec.generate.visual_token, spec.generate.guidance) == ("none", "auto")


@pytest.mark.parametrize("size", range(8, 264, 8))
def test_a_generator_of_any_size_can_be_built_from_what_is_filled_in(size: int) -> None:
    """The checks before a training, on every side that images may have, in pixels and in latents."""
    from engine.diffusion.tiny import tiny_models

    for pretrain in ({}, {"space": "latent"}):
        tiny_models.check(validate(recipe(size, pretrain=pretrain)).pretrain, size)


@pytest.mark.parametrize("size", [72, 128, 136, 512])
def test_above_64_pixels_it_is_in_latents(size: int) -> None:
    spec = validate(recipe(size))
    assert is_latent(spec)
    if size > 128:
        assert (spec.pretrain.vae, spec.pretrain.unet, spec.pretrain.clip) == (VaeSpec(), UNetSpec(), ClipSpec())
    if size == 128:
        assert spec.pretrain.vae == VaeSpec(blocks=(32, 64, 64, 64), steps=2000, batch=16, lr=1e-3)
        assert spec.pretrain.unet == UNetSpec(blocks=(96, 192), head_dim=32, steps=6000, batch=32, lr=1e-3)
        assert spec.pretrain.clip.patch == 16
    assert validate({key: value for key, value in recipe().items() if key != "images"}).pretrain.space == "latent"


@pytest.mark.parametrize(
    "asked",
    [
        {"pretrain": {"unet": {"steps": 5}}},
        {"pretrain": {"vae": {}}},
        {"pretrain": {"denoiser": "unet"}},
        {"pretrain": {"space": "latent"}},
        {"generate": {"visual_token": "own"}},
        {"generate": {"visual_token": "class_gaussian"}},
        {"generate": {"negative_prompt": "blurred"}},
    ],
    ids=json.dumps,
)
def test_a_recipe_that_names_a_part_of_it_is_in_latents(asked: dict[str, Any]) -> None:
    assert is_latent(validate(recipe(**asked)))


def test_a_transformer_is_in_latents() -> None:
    for pretrain in ({"denoiser": "dit"}, {"denoiser": "dit", "dit": {"layers": 2}}):
        spec = validate(recipe(pretrain=pretrain, generate={"visual_token": "none"}))
        assert (spec.pretrain.kind, spec.pretrain.held_out, spec.generate.guidance) == ("dit", 0, "cfg")
        assert spec.pretrain.views == ViewsSpec()


def test_what_a_recipe_says_stays() -> None:
    said = {
        "pretrain": {
            "pixel": {"steps": 7, "dropout": 0.2},
            "clip": {"patch": 1, "steps": 3},
            "views": {"mirror": True},
            "held_out": 0.25,
            "augment": "flip",
        },
        "generate": {"guidance": "cfg", "guidance_scale": 3.0, "visual_token": "none"},
    }
    spec = validate(recipe(32, **said))
    assert spec.pretrain.pixel == PixelSpec(
        blocks=(32, 64, 128), attention=(8,), steps=7, batch=64, lr=1e-3, dropout=0.2
    )
    assert (spec.pretrain.clip.patch, spec.pretrain.clip.steps) == (1, 3)
    assert spec.pretrain.views == ViewsSpec(probability=0.5, mirror=True)
    assert (spec.pretrain.held_out, spec.pretrain.augment) == (0.25, "flip")
    assert (spec.generate.guidance, spec.generate.guidance_scale) == ("cfg", 3.0)
    none = validate(recipe(pretrain={"held_out": 0, "views": {"probability": 0}}))
    assert (none.pretrain.held_out, none.pretrain.views.probability) == (0, 0)


def test_blocks_of_ones_own_have_attention_where_the_recipe_says_so() -> None:
    """The row's sides and widths are those of the row's blocks."""
    assert validate(recipe(32, pretrain={"pixel": {"blocks": [8, 16]}})).pretrain.pixel.attention == ()
    both = {"blocks": [8, 16], "attention": [16], "head_dim": 8}
    assert validate(recipe(32, pretrain={"pixel": both})).pretrain.pixel.attention == (16,)


def test_guidance_is_the_weaker_models_where_there_is_one() -> None:
    flow = validate(recipe(pretrain={"pixel": {"objective": "flow"}}))
    assert (flow.generate.scheduler, flow.generate.guidance) == ("flow_euler", "auto")
    assert validate(recipe()).generate.scheduler == "dpmsolver++"
    assert validate(recipe(pretrain={"pixel": {"guide": 0}})).generate.guidance == "cfg"
    assert validate(recipe(generate={"guidance_interval": [0.2, 0.8]})).generate.guidance == "cfg"
    assert validate(recipe(pretrain={"pixel": {"guide": 0.5}})).generate.guidance == "auto"


@pytest.mark.parametrize("features", [True, "yes", 1])
def test_a_generator_that_reads_features_has_its_visual_token(features: Any) -> None:
    asked = recipe(pretrain={"pixel": {"features": features}}, match={})
    for generate, token in (({}, "own"), ({"visual_token": "class"}, "class"), ({"visual_token": "none"}, "none")):
        spec = validate(asked | {"generate": generate})
        assert (spec.pretrain.kind, spec.generate.visual_token) == ("pixel", token)
        assert spec.match is not None
        assert spec.match.visual_token == "own"
    refused = recipe(pretrain={"pixel": {"features": "no"}}, match={})
    assert validate(refused).generate.visual_token == "none"


def test_a_fine_tune_in_pixels_is_told_no_token() -> None:
    spec = validate(recipe(match={"rank": 8}))
    assert spec.match is not None
    assert (spec.match.rank, spec.match.visual_token) == (8, "none")
    with pytest.raises(ConfigError, match=r"told classes only: set match\.visual_token to none, or pretrain\.pixel"):
        validate(recipe(match={"visual_token": "own"}))


def test_a_checkpoint_is_left_as_it_is() -> None:
    spec = validate(recipe(model={"checkpoint": "someone/some-model"}, match={}))
    assert is_latent(spec)
    assert spec.match is not None
    assert spec.match.visual_token == "own"
    assert validate(recipe(model={"checkpoint": None})).pretrain.space == "pixel"


@pytest.mark.parametrize(
    "sections",
    [
        {"pretrain": []},
        {"pretrain": None},
        {"pretrain": {"pixel": []}},
        {"pretrain": {"pixel": None}},
        {"pretrain": {"pixel": {"blocks": 3}}},
        {"pretrain": {"pixel": {"features": []}}},
        {"pretrain": {"pixel": {"guide": {}}}},
        {"pretrain": {"clip": "large"}},
        {"pretrain": {"clip": {"patch": "x"}}},
        {"pretrain": {"views": 0.5}},
        {"pretrain": {"vae": []}},
        {"pretrain": {"unet": None}},
        {"pretrain": {"denoiser": []}},
        {"pretrain": {"space": None}},
        {"pretrain": {"space": []}},
        {"pretrain": {"space": "pixels"}},
        {"generate": "x"},
        {"generate": {"visual_token": []}},
        {"generate": {"negative_prompt": {"a": 1}}},
        {"match": 3},
        {"model": None},
        {"model": []},
        {"images": None},
        {"images": []},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("size", [8, 24, 128])
def test_odd_sections_are_one_line(sections: dict[str, Any], size: int) -> None:
    key = next(iter(sections))
    with pytest.raises(ConfigError) as caught:
        validate(recipe(size) | sections)
    assert "\n" not in str(caught.value)
    assert key in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "size", ["8", None, True, 0, -8, 12, 8.5, [8], {}, float("nan"), float("inf"), 10**400, "x" * 5000], ids=repr
)
def test_odd_sizes_are_one_line(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"images\.size") as caught:
        validate(recipe(size))
    assert "\n" not in str(caught.value)


def test_data_that_is_no_mapping_is_one_line() -> None:
    for data in ([], None, "x", {"images": 3}):
        with pytest.raises(ConfigError):
            validate(data)  # type: ignore[arg-type]


def test_how_a_size_is_written_does_not_matter() -> None:
    assert specs.spec_hash(validate(recipe(32.0))) == specs.spec_hash(validate(recipe(32)))
    assert validate(recipe(3.2e1)).pretrain.space == "pixel"


def test_space_pixel_above_its_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"space pixel is for images up to 64 pixels, images\.size is 72"):
        validate(recipe(72, pretrain={"space": "pixel"}))


def test_what_is_filled_in_is_part_of_the_identity() -> None:
    """Written out, the same settings are the same run; another row's are another."""
    filled = {
        "pretrain": {
            "space": "pixel",
            "held_out": 0.1,
            "views": {"probability": 0.5},
            "pixel": {"blocks": [32, 64], "steps": 1500, "batch": 64, "lr": 2e-3},
            "clip": {"patch": 2},
        },
        "generate": {"guidance": "auto", "visual_token": "none"},
    }
    known = specs.spec_hash(validate(recipe()))
    assert specs.spec_hash(validate(recipe(**filled))) == known
    filled["pretrain"]["pixel"]["steps"] = 1501
    assert specs.spec_hash(validate(recipe(**filled))) != known


def test_overrides_come_before_what_is_filled_in() -> None:
    quickstart = RECIPES / "quickstart.yaml"

    def load(*changes: str) -> RunSpec:
        return specs.load(quickstart, changes)

    assert load("pretrain.pixel.steps=9").pretrain.pixel == PixelSpec(blocks=(32, 64), steps=9, lr=2e-3)
    assert load("pretrain.views.mirror=true").pretrain.views == ViewsSpec(probability=0.5, mirror=True)
    assert load("images.size=32").pretrain.pixel.blocks == (32, 64, 128)
    assert load("generate.guidance=cfg").generate.guidance == "cfg"
    assert load("model.checkpoint=a/b").pretrain.space == "latent"
    for latent in ("pretrain.unet.steps=9", "generate.visual_token=own", "pretrain.space=latent", "images.size=72"):
        assert is_latent(load(latent)), latent
