"""LoRA files of each family: what `save_lora` writes, its stock loader reads; those of other families are refused in
one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from engine.diffusion import families, lora
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.diffusion.families.family import Family, tell
from engine.diffusion.process import Process
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
from tests.support.checkpoints import write_checkpoint, write_lora
from tests.support.families import write_family_lora

TARGETS = {
    "xl": ("to_q", "to_k", "to_v", "to_out.0"),
    "sd3": ("attn.to_q", "attn.to_k", "attn.add_k_proj", "attn.to_out.0"),
    "dit": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "pixel": ("to_q", "to_k", "to_v", "to_out.0", "conv2"),
}


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_checkpoint(tmp_path_factory.mktemp("sd15") / "model", "sd15")
    return inspect(ModelSpec(checkpoint=str(folder)), 64)


@pytest.fixture(scope="module")
def loras(
    family_folders: dict[str, Path], sd15: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A LoRA of each family; sd15's has a part for its text encoder."""
    root = tmp_path_factory.mktemp("family_loras")
    made = {kind: write_family_lora(root / kind, family_folders[kind], targets) for kind, targets in TARGETS.items()}
    return made | {"sd15": write_lora(root / "sd15", sd15.path, text=True)}


def predict(family: Family, pipeline: Any) -> torch.Tensor:
    told = tell(family.encoder(pipeline), ["one", "two"], [1, 2], [None, None])
    generator = torch.Generator().manual_seed(0)
    config = getattr(pipeline, family.denoiser).config
    noisy = torch.randn(2, config.in_channels, 4, 4, generator=generator)
    process: Process = family.process(pipeline.scheduler.config)
    times = process.times(2, generator)
    denoiser = getattr(pipeline, family.denoiser)
    with torch.no_grad():
        return family.predict(denoiser, noisy.to(denoiser.dtype), times, told)


def with_adapter(checkpoint: Checkpoint, kind: str) -> tuple[Any, Family, Any]:
    """Pipeline, family and denoiser with a fresh adapter of rank 3."""
    pipeline = load(checkpoint, "cpu", "float32")
    family = families.of(pipeline)
    denoiser = getattr(pipeline, family.denoiser)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=list(TARGETS[kind])), denoiser)
    return pipeline, family, denoiser


@pytest.mark.parametrize("kind", ["xl", "sd3"])
def test_a_saved_lora_acts_through_the_stock_loader_as_it_did_in_training(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    trained, family, denoiser = with_adapter(checked[kind], kind)
    before = predict(family, trained)
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    after = predict(family, trained)
    family.save_lora(tmp_path, "made.safetensors", denoiser)
    theirs = stock(kind)
    theirs.load_lora_weights(str(tmp_path), weight_name="made.safetensors")
    torch.testing.assert_close(predict(family, theirs), after, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["xl", "dit"])
def test_equal_adapters_make_equal_files(
    checked: dict[str, Checkpoint], stock: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    _, family, denoiser = with_adapter(checked[kind], kind)
    for number in range(12):  # the library's order of two metadata would differ somewhere in all but one of 2,048 tests
        family.save_lora(tmp_path, f"{number}.safetensors", denoiser)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 12
    assert len({path.read_bytes() for path in files}) == 1
    assert load_file(files[0])


@pytest.mark.parametrize("kind", ["xl", "sd3", "dit", "pixel"])
def test_an_attached_lora_is_the_formula(checked: dict[str, Checkpoint], loras: dict[str, Path], kind: str) -> None:
    """W + scale * up @ down: alpha, twice the rank in training, is in the up matrices of these files."""
    info = lora.check(loras[kind], checked[kind])
    assert (info.rank, info.text_modules) == (4, 0)
    before, after = (load(checked[kind], "cpu", "float32") for _ in range(2))
    lora.attach(after, loras[kind], 0.7)
    denoiser = families.of(before).denoiser
    old, new = (dict(getattr(one, denoiser).named_parameters()) for one in (before, after))
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(changed) == info.denoiser_modules
    tensors = {
        key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.").removeprefix(f"{denoiser}."): value
        for key, value in load_file(loras[kind]).items()
    }
    for name in changed:
        down, up = (tensors[name.replace(".weight", f".lora_{side}.weight")] for side in "AB")
        change = torch.einsum("or...,ri...->oi...", up, down) if up.ndim == 4 else up @ down  # up is 1 x 1
        torch.testing.assert_close(new[name], old[name] + 0.7 * change, rtol=1e-4, atol=1e-5)


def test_the_second_text_encoder_is_changed_too(checked: dict[str, Checkpoint], tmp_path: Path) -> None:
    """A file of text encoders alone, as diffusers' SDXL training script writes their part."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"])
    before, after, trained = (load(checked["xl"], "cpu", "float32") for _ in range(3))
    layers = {}
    for number, name in enumerate(("text_encoder", "text_encoder_2")):
        model = inject_adapter_in_model(config, getattr(trained, name))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, weight_name="text.safetensors", **layers)
    info = lora.check(tmp_path / "text.safetensors", checked["xl"])
    assert (info.denoiser_modules, info.text_modules) == (0, 2 * 3 * 2)
    lora.attach(after, tmp_path / "text.safetensors", 1.0)
    for name in ("text_encoder", "text_encoder_2"):
        old, new = (dict(getattr(one, name).named_parameters()) for one in (before, after))
        assert sum(not torch.equal(weight, new[key]) for key, weight in old.items()) == 3 * 2


def test_a_dit_lora_saved_from_training_acts_the_same(checked: dict[str, Checkpoint], tmp_path: Path) -> None:
    trained, again = (load(checked["dit"], "cpu", "float32") for _ in range(2))
    family = families.of(trained)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=5, target_modules=list(TARGETS["dit"])), trained.transformer)
    for name, parameter in trained.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    family.save_lora(tmp_path, "made.safetensors", trained.transformer)
    lora.check(tmp_path / "made.safetensors", checked["dit"])
    lora.attach(again, tmp_path / "made.safetensors", 1.0)
    torch.testing.assert_close(predict(family, again), predict(family, trained), rtol=1e-4, atol=1e-5)


def test_a_dit_lora_without_metadata_has_the_rank_as_alpha(
    checked: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    save_file(load_file(loras["dit"]), tmp_path / "bare.safetensors")
    bare, whole = (load(checked["dit"], "cpu", "float32") for _ in range(2))
    lora.check(tmp_path / "bare.safetensors", checked["dit"])
    lora.attach(bare, tmp_path / "bare.safetensors", 1.0)
    lora.attach(whole, loras["dit"], 1.0)
    family = families.of(bare)
    torch.testing.assert_close(predict(family, bare), predict(family, whole), rtol=1e-4, atol=1e-5)


SIDES = {"A": "down", "B": "up"}


def kohya(path: Path, source: Path) -> Path:
    """The same adapter at alpha = rank / 2 by the names of the kohya-ss trainer, which counts SDXL's blocks as its
    first release did."""
    blocks = {
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
    }
    tensors = {}
    for key, tensor in load_file(source).items():
        module, _, matrix = key.removesuffix(".weight").removeprefix("unet.").rpartition(".lora_")
        for ours, theirs in blocks.items():
            module = module.replace(ours, theirs)
        name = "lora_unet_" + module.replace(".", "_")
        tensors[f"{name}.lora_{SIDES[matrix]}.weight"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def test_a_kohya_file_for_sdxl_acts_as_the_same_at_alpha_over_rank(
    checked: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    file = kohya(tmp_path / "kohya.safetensors", loras["xl"])
    whole, half = (load(checked["xl"], "cpu", "float32") for _ in range(2))
    assert lora.check(file, checked["xl"]).denoiser_modules == lora.check(loras["xl"], checked["xl"]).denoiser_modules
    lora.attach(whole, file, 1.0)
    lora.attach(half, loras["xl"], 0.5)
    family = families.of(whole)
    torch.testing.assert_close(predict(family, whole), predict(family, half), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["xl", "sd3", "dit", "pixel"])
def test_in_bfloat16_the_adapter_stays_beside_the_weights_and_acts(
    checked: dict[str, Checkpoint], loras: dict[str, Path], kind: str
) -> None:
    plain, adapted = (load(checked[kind], "cpu", "bfloat16") for _ in range(2))
    lora.attach(adapted, loras[kind], 0.5)
    family = families.of(plain)
    old, new = (dict(getattr(one, family.denoiser).named_parameters()) for one in (plain, adapted))
    kept = {name.replace(".base_layer", ""): weight for name, weight in new.items()}
    assert all(torch.equal(kept[name], weight) for name, weight in old.items())
    assert (predict(family, plain) - predict(family, adapted)).abs().max() > 0.01
    exact = load(checked[kind], "cpu", "float32")
    lora.attach(exact, loras[kind], 0.5)
    assert (predict(family, exact) - predict(family, adapted)).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("file", "onto", "message"),
    [
        ("xl", "sd15", "another family: the checkpoint's unet lacks"),
        ("sd15", "xl", "another family: the checkpoint's unet lacks"),
        ("sd3", "sd15", "keys for other models, such as transformer."),
        ("sd15", "sd3", "keys for other models, such as unet."),
        ("dit", "sd3", "another family: the checkpoint's transformer lacks"),
        ("sd3", "dit", "another family: the checkpoint's transformer lacks"),
        ("xl", "dit", "keys for other models, such as unet."),
    ],
)
def test_a_lora_of_another_family_is_refused_in_one_line(
    checked: dict[str, Checkpoint], sd15: Checkpoint, loras: dict[str, Path], file: str, onto: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.check(loras[file], (checked | {"sd15": sd15})[onto])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["sd3", "dit"])
def test_lost_blocks_and_halves_are_found(
    checked: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    tensors = load_file(loras[kind])
    broken = {
        "is missing; keys were lost": lambda key: (
            "blocks.0.attn.to_k." not in key and "blocks.0.attn1.to_k." not in key
        ),
        "keys are missing": lambda key: (
            not key.endswith("blocks.0.attn.to_q.lora_B.weight")
            and not key.endswith("blocks.0.attn1.to_q.lora_B.weight")
        ),
    }
    for number, (message, keep) in enumerate(broken.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: value for key, value in tensors.items() if keep(key)}, path)
        with pytest.raises(ConfigError, match=message):
            lora.check(path, checked[kind])


def test_dit_metadata_that_ask_for_another_kind_of_adapter_are_refused(
    checked: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    metadata = json.dumps({"transformer.use_dora": True})
    save_file(load_file(loras["dit"]), tmp_path / "other.safetensors", {"lora_adapter_metadata": metadata})
    with pytest.raises(ConfigError, match="its metadata ask for use_dora"):
        lora.check(tmp_path / "other.safetensors", checked["dit"])
