"""Recipes of generators in pixels, views and held-out images: what cannot be is one line, and nothing was claimed for
it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import spec as specs
from engine.errors import ConfigError
from engine.spec import spec_hash
from pipelines.cli import execute
from pipelines.context import RECIPES

QUICKSTART = RECIPES / "latent.yaml"
PIXEL = ("pretrain.space=pixel", "generate.visual_token=none")

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "more than 64 pixels": (
        (*PIXEL, "images.size=72"),
        "pretrain.space pixel is for images up to 64 pixels, images.size is 72: set it to latent",
    ),
    "a transformer in pixels": (
        (*PIXEL, "pretrain.denoiser=dit"),
        "denoiser dit works in latents: set space to latent",
    ),
    "views of a checkpoint": (
        ("model.checkpoint=/", "pretrain.views={probability: 0.1}"),
        "pretrain.views needs a generator that learns augmentation labels, and that of model.checkpoint has none",
    ),
    "views of a transformer": (
        ("pretrain.denoiser=dit", "generate.visual_token=none", "pretrain.views={probability: 0.1}"),
        "views need augmentation labels, which denoiser dit has no place for",
    ),
    "kinds of views without any": (
        ("pretrain.views={mirror: true}",),
        "mirror and colour are kinds of views: raise probability",
    ),
    "unknown view": (
        ("pretrain.views={probability: 0.1, mirrors: true}",),
        "unknown key pretrain.views.mirrors; did you mean mirror?",
    ),
    "more than half held out": (("pretrain.held_out=0.6",), "pretrain.held_out must be less than or equal to 0.5"),
    "none held out": (
        ("pretrain.held_out=0.1", "split.train=9"),
        "pretrain.held_out: 0.1 of 9 training images is none; raise it, or set it to 0",
    ),
    "attention at no side": (
        (*PIXEL, "pretrain.pixel.attention=[3]"),
        "pretrain.pixel.attention: [3] is no side of the blocks, which are [8, 4]",
    ),
    "heads that do not fit": (
        (*PIXEL, "pretrain.pixel={attention: [4], head_dim: 48}"),
        "pretrain.pixel.head_dim: 48 does not divide the widths [64]",
    ),
    "odd widths": ((*PIXEL, "pretrain.pixel.blocks=[12, 24]"), "pretrain.pixel.blocks: must be multiples of 8"),
    "too many blocks": (
        (*PIXEL, "pretrain.pixel.blocks=[8, 8, 8, 8, 8]"),
        "pretrain.pixel.blocks: are too many to halve 8 px that often",
    ),
    "image features that are not learnt": (
        (PIXEL[0],),
        "pretrain.space pixel makes a generator that is told classes only: set "
        "generate.visual_token to none, or pretrain.pixel.features to true",
    ),
    "negative prompt": ((*PIXEL, "generate.negative_prompt=bold"), "and no generate.negative_prompt"),
    "a fine-tune with a token": ((*PIXEL, "match={visual_token: own}"), "set match.visual_token to none"),
    "a fine-tune of attention that is not there": (
        (*PIXEL, "match={visual_token: none}"),
        "match.targets: the model has no linear or convolution layer named to_q",
    ),
    "autoguidance in latents": (
        ("generate.guidance=auto",),
        "generate.guidance: is auto, but the generator has no weaker model",
    ),
    "autoguidance without a weaker model": (
        (*PIXEL, "generate.guidance=auto", "pretrain.pixel.guide=0"),
        "that is what pretrain.pixel.guide keeps; set it to cfg",
    ),
    "autoguidance of the text": (
        (*PIXEL, "generate={guidance: auto, guidance_on: text}"),
        "guidance auto leads away from a weaker model: it takes no guidance_on",
    ),
    "autoguidance in an interval": (
        (*PIXEL, "generate.guidance=auto", "generate.guidance_interval=[0, 0.5]"),
        "it takes no guidance_on, no guidance_interval",
    ),
    "another kind's sampler": (
        (*PIXEL, "generate.scheduler=unipc"),
        "unipc is for checkpoints that were trained by diffusion, the closed-set generator "
        "was trained under EDM; set generate.scheduler to dpmsolver++",
    ),
    "a variant that EDM lacks": (
        (*PIXEL, "generate.scheduler=dpmsolver++_karras"),
        "generate.scheduler: dpmsolver++_karras is for",
    ),
    "flow matching's sampler": (
        (*PIXEL, "generate.scheduler=flow_euler"),
        "flow_euler is for checkpoints that were trained by flow matching",
    ),
    "guidance that was never trained": (
        (*PIXEL, "generate.guidance=cfg", "pretrain.pixel.drop_condition=0"),
        "pretrain.pixel.drop_condition 0 trains none",
    ),
    "average that is too long": (
        (*PIXEL, "pretrain.pixel.ema=0.3"),
        "pretrain.pixel.ema must be less than or equal to 0.25",
    ),
    "guide of all the training": ((*PIXEL, "pretrain.pixel.guide=2"), "pretrain.pixel.guide must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_one_line_before_ray(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    settings, says = WRONG[name]
    overrides = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.chdir(tmp_path)
    assert execute(["generate", str(QUICKSTART), "-o", "out", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "out/spec.yaml").exists()


def test_the_reconstructed_arm_needs_a_vae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [word for setting in (*PIXEL, "train={arms: [real, reconstructed]}") for word in ("--set", setting)]
    assert execute(["train", str(QUICKSTART), "-o", "out", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "train.arms: reconstructed needs the generator's VAE, and pretrain.space pixel makes a generator without one"
        in line
    )


def test_plan_tells_how_many_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    share = ["--set", "pretrain.held_out=0.1", "--set", "split.train=100"]
    assert execute(["plan", str(QUICKSTART), *share]) == 0
    assert "10, by which the generator's training is chosen" in " ".join(capsys.readouterr().out.split())
    share[1], share[-1] = "pretrain.held_out=0.05", "split.train=0.01"
    assert execute(["plan", str(QUICKSTART), *share]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pretrain.held_out: 0.05 of 18 training images is none" in line


def test_each_of_them_is_another_run() -> None:
    settings = (
        (),
        PIXEL,
        (*PIXEL, "pretrain.pixel.steps=9"),
        (*PIXEL, "generate.guidance=cfg"),
        ("pretrain.held_out=0.1",),
        ("pretrain.views={probability: 0.1}",),
        ("pretrain.views={probability: 0.1, mirror: true}",),
    )
    assert len({spec_hash(specs.load(QUICKSTART, some)) for some in settings}) == len(settings)
    with pytest.raises(ConfigError, match=r"unknown key pretrain\.pixels"):
        specs.load(QUICKSTART, ["pretrain.pixels.steps=9"])
