"""Directories of each family: the facts of sound ones, a refusal for what does not fit, equal weights to stock
loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.diffusion import families, inputs
from engine.diffusion.checkpoint import Checkpoint, empty, inspect, load
from engine.errors import ConfigError, StorageError
from engine.spec.recipe import ModelSpec
from tests.support.families import LENGTH, WIDTHS, WRITERS

DENOISER = "transformer/diffusion_pytorch_model.safetensors"
Act = Callable[[Path], None]


def at(folder: Path, size: int = 8) -> Checkpoint:
    return inspect(ModelSpec(checkpoint=str(folder)), size)


def setting(name: str, **changes: Any) -> Act:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return act


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Act:
    def act(folder: Path) -> None:
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, {"format": "pt"})

    return act


def remove(name: str) -> Act:
    def act(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def test_facts_of_each_family(checked: dict[str, Checkpoint]) -> None:
    places = {WIDTHS[0]: (LENGTH - 1, 0), WIDTHS[1]: (LENGTH - 1, WIDTHS[0])}
    facts = {
        k: (c.family, c.latent_channels, c.latent_size, c.places, c.prediction_type, c.classes)
        for k, c in checked.items()
    }
    assert facts == {
        "xl": ("StableDiffusionXLPipeline", 4, 4, places, "epsilon", None),
        "sd3": ("StableDiffusion3Pipeline", 16, 4, places, "flow", None),
        "sd3_t5": ("StableDiffusion3Pipeline", 16, 4, places, "flow", None),
        "dit": ("DiTPipeline", 4, 4, {}, "epsilon", 1000),
        "pixel_plain": ("ConsistencyModelPipeline", 3, 8, {}, "epsilon", 10),
        "pixel": ("ConsistencyModelPipeline", 3, 8, {WIDTHS[0]: (0, 0)}, "epsilon", 10),
        "pixel_flow": ("DDPMPipeline", 3, 8, {WIDTHS[0]: (0, 0)}, "flow", 10),
    }
    assert [c.feature_dim for c in checked.values()] == [WIDTHS[1], *[None] * 6]


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if not kind.startswith("pixel")])
def test_loaded_weights_equal_those_of_stock_loading(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], kind: str
) -> None:
    theirs, ours = stock(kind), load(checked[kind], "cpu", "float32")
    assert type(ours) is type(theirs)
    assert type(ours.scheduler) is type(theirs.scheduler)
    count = 0
    for name, model in ours.components.items():
        if isinstance(model, torch.nn.Module):
            pairs = zip(model.named_parameters(), getattr(theirs, name).named_parameters(), strict=True)
            assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
            stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # tied ones once
            count += sum(stored.values())
    assert checked[kind].parameters == count


def test_zeros_for_an_empty_prompt_are_taken_from_the_index_and_part_of_the_digest(
    family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family_folders["xl"], tmp_path / "xl"))
    before = at(folder)
    setting("model_index.json", force_zeros_for_empty_prompt=False)(folder)
    after = at(folder)
    assert before.digest != after.digest
    with pytest.raises(StorageError, match=r"model_index\.json: is not the file that the run began with"):
        load(before, "cpu", "float32")
    pipeline = load(after, "cpu", "float32")
    assert pipeline.config.force_zeros_for_empty_prompt is False
    told = families.of(pipeline).encoder(pipeline).encode("", None)
    assert told["states"].any()


def test_a_dit_by_its_older_class_name_is_loaded_as_the_same(
    family_folders: dict[str, Path], checked: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """The released DiT directories name the class that diffusers had then, with settings that are no more."""
    folder = Path(shutil.copytree(family_folders["dit"], tmp_path / "dit"))
    setting("model_index.json", transformer=["diffusers", "Transformer2DModel"])(folder)
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    setting("transformer/config.json", **old, use_linear_projection=False)(folder)
    one, other = (load(found, "cpu", "float32").transformer for found in (at(folder), checked["dit"]))
    assert type(one) is type(other)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert type(empty(folder, "transformer")) is type(one)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_weight_takes_part_in_a_prediction(checked: dict[str, Checkpoint], kind: str) -> None:
    folder, family = checked[kind].path, families.FAMILIES[checked[kind].family]
    inputs.check(folder, family, empty(folder, family.denoiser))


@pytest.mark.parametrize(
    ("kind", "size", "latent"), [("xl", 24, 12), ("sd3", 16, 8), ("dit", 16, 8), ("pixel", 16, 16)]
)
def test_other_sizes_fit(family_folders: dict[str, Path], kind: str, size: int, latent: int) -> None:
    assert at(family_folders[kind], size).latent_size == latent


BROKEN: dict[str, tuple[str, Act, str]] = {
    "second encoder gone": ("xl", remove("text_encoder_2"), "text_encoder_2: is missing"),
    "second tokenizer cut": ("sd3", remove("tokenizer_2/tokenizer.json"), "tokenizer_2/vocab.json: is missing"),
    "T5 named but gone": ("sd3_t5", remove("text_encoder_3"), "text_encoder_3: is missing"),
    "T5 without tokenizer": (
        "sd3_t5",
        setting("model_index.json", tokenizer_3=[None, None]),
        "one of text_encoder_3 and tokenizer_3",
    ),
    "T5 tokenizer cut": ("sd3_t5", remove("tokenizer_3/tokenizer.json"), "tokenizer_3/tokenizer.json: is missing"),
    "T5 of another width": (
        "sd3_t5",
        setting("text_encoder_3/config.json", d_model=64),
        "width 96, the text encoders write 64",
    ),
    "custom transformer": (
        "sd3",
        setting("model_index.json", transformer=["mine", "Net"]),
        "mine.Net as transformer: custom or unknown code",
    ),
    "code": ("dit", lambda folder: (folder / "transformer/mine.py").write_text("1"), "is code in a checkpoint"),
    "auto_map": ("sd3", setting("text_encoder_2/config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "pickle": (
        "dit",
        lambda folder: (folder / DENOISER).rename(folder / DENOISER.replace(".safetensors", ".bin")),
        "pickled weights",
    ),
    "NaN": ("sd3", tensors(DENOISER, lambda t: t["proj_out.bias"].fill_(float("nan"))), "tensor proj_out.bias has NaN"),
    "missing weight": (
        "dit",
        tensors(DENOISER, lambda t: t.pop("proj_out_2.bias")),
        "transformer: lacks 1 weights of its model",
    ),
    "missing T5 weight": (
        "sd3_t5",
        tensors("text_encoder_3/model.safetensors", lambda t: t.pop("encoder.final_layer_norm.weight")),
        "text_encoder_3: lacks 1 weights",
    ),
    "DDPM scheduler": (
        "sd3",
        setting("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "DDIMScheduler as scheduler",
    ),
    "flow scheduler": (
        "xl",
        setting("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "as scheduler",
    ),
    "refiner": (
        "xl",
        setting("unet/config.json", projection_class_embeddings_input_dim=6 * 8 + 12),
        "reads a pooled text of width 12, the text encoders write 20",
    ),
    "no sizes": ("xl", setting("unet/config.json", addition_embed_type=None), "addition_embed_type text_time"),
    "inpainting": ("xl", setting("unet/config.json", in_channels=9), "takes 9 channels"),
    "other widths": (
        "xl",
        setting("unet/config.json", cross_attention_dim=2048),
        "joined text tokens of width 2048, the text encoders write 80",
    ),
    "other pooled": (
        "sd3",
        setting("transformer/config.json", pooled_projection_dim=2048),
        "pooled texts of width 2048, the text encoders write 80",
    ),
    "lengths differ": ("sd3", setting("tokenizer_2/tokenizer_config.json", model_max_length=8), "read 16 and 8 tokens"),
    "latent means": ("xl", setting("vae/config.json", latents_mean=[0.0] * 4), "normalises latents by channel"),
    "few classes": ("dit", setting("transformer/config.json", num_embeds_ada_norm=10), "knows 10 classes"),
    "other norm": ("dit", setting("transformer/config.json", norm_type="ada_norm"), "by ada_norm;"),
    "odd config": ("sd3", setting("transformer/config.json", patch_size="two"), "patch_size 'two', which is no number"),
    "SD 1's index": (
        "xl",
        setting("model_index.json", _class_name="StableDiffusionPipeline"),
        "text_encoder_2: custom or unknown code",
    ),
    "other sigma_data": (
        "pixel",
        setting("scheduler/scheduler_config.json", sigma_data=1.0),
        "is for images of standard deviation 1.0, not 0.5",
    ),
    "no classes": (
        "pixel",
        setting("unet/config.json", num_class_embeds=None),
        "unet: is told no classes (num_class_embeds)",
    ),
    "four channels": (
        "pixel_plain",
        setting("unet/config.json", in_channels=4, out_channels=4),
        "unet: does not take and give RGB",
    ),
    "classes by another embedding": (
        "pixel_plain",
        setting("unet/config.json", class_embed_type="timestep"),
        "unet: is told no classes",
    ),
    "guide of other classes": (
        "pixel",
        setting("guide/config.json", num_class_embeds=3),
        "guide: is told other things than",
    ),
    "guide without projection": ("pixel", remove("guide_projection"), "guide_projection: is missing"),
    "guide that is cut": (
        "pixel",
        tensors("guide/diffusion_pytorch_model.safetensors", lambda t: t.pop("conv_out.bias")),
        "guide: lacks 1 weights",
    ),
    "guide with infinities": (
        "pixel",
        tensors("guide/diffusion_pytorch_model.safetensors", lambda t: t["conv_out.bias"].fill_(float("inf"))),
        "tensor conv_out.bias has NaN or infinite",
    ),
    "projection of another width": (
        "pixel",
        setting("image_projection/config.json", redux_dim=33),
        "guide: is told other things",
    ),
    "consistency model": (
        "pixel_plain",
        setting("model_index.json", scheduler=["diffusers", "CMStochasticIterativeScheduler"]),
        "CMStochasticIterativeScheduler as scheduler",
    ),
    "code in the guide": (
        "pixel",
        lambda folder: (folder / "guide/mine.py").write_text("1"),
        "is code in a checkpoint",
    ),
    "unknown pipeline": (
        "dit",
        setting("model_index.json", _class_name="FluxPipeline"),
        "is for 'FluxPipeline', not for Stable Diffusion 1, 2, XL or 3",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_directory_that_does_not_fit_is_refused_in_one_line(
    family_folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    kind, act, message = BROKEN[name]
    folder = Path(shutil.copytree(family_folders[kind], tmp_path / kind))
    act(folder)
    with pytest.raises(ConfigError) as caught:
        at(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("sd3", 32, "32 pixels are more than the checkpoint's table of positions covers; use at most 24"),
        ("dit", 20, "use a multiple of 8 from 8 on"),
        ("xl", 12, "use a multiple of 8 from 8 on"),
        ("pixel", 7, "7 pixels do not fit the checkpoint, which halves them 1 times; use a multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(family_folders: dict[str, Path], kind: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        at(family_folders[kind], size)
