"""What a fine-tune changes: stock diffusers loads the LoRA and draws as the tuned network does; odd targets are
refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from engine.diffusion import checkpoint as checkpoints
from engine.diffusion import lora as loras
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
from engine.spec.training import MatchSpec
from engine.training.matching import adapter
from tests.support.outputs import Output


def _tuned(ready: Output, match: MatchSpec, folder: Path) -> Any:
    """A denoiser whose trained parameters are moved, written to `folder`."""
    pipeline = checkpoints.load(ready.checkpoint, "cpu", "float32")
    adapter.attach(pipeline.unet, match, seed=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.trained(pipeline.unet):
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    adapter.save(folder, pipeline.unet, match, ready.checkpoint, adapter.family_of(ready.checkpoint))
    return pipeline.unet


def _predict(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    noisy = torch.randn(2, unet.config.in_channels, 4, 4, generator=generator)
    states = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(noisy, torch.tensor([10, 700]), encoder_hidden_states=states).sample


BY_NAME = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.0.resnets.1.conv2")


@pytest.mark.parametrize("targets", ["attention", "conv", "attention+conv", ("to_q", "conv1"), BY_NAME])
def test_stock_diffusers_loads_the_lora(ready: Output, tmp_path: Path, targets: Any) -> None:
    tuned = _tuned(ready, MatchSpec(rank=3, alpha=6.0, targets=targets), tmp_path)
    stock: Any = StableDiffusionPipeline.from_pretrained(ready.checkpoint.path, local_files_only=True)
    before = _predict(stock.unet)
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(_predict(stock.unet), _predict(tuned), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_predict(tuned), before, atol=1e-3)
    found = loras.check(tmp_path / "pytorch_lora_weights.safetensors", ready.checkpoint)
    assert found.rank == 3
    assert found.parameters == sum(parameter.numel() for parameter in adapter.trained(tuned))


@pytest.mark.parametrize("targets", ["attention", BY_NAME])
def test_the_exported_weights_carry_alpha(ready: Output, tmp_path: Path, targets: Any) -> None:
    """Tools that read neither metadata nor alphas add up x down: that is all of the change; this engine adds the
    same."""
    tuned = _tuned(ready, MatchSpec(rank=3, alpha=7.0, targets=targets), tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    pipeline = checkpoints.load(ready.checkpoint, "cpu", "float32")
    before = {name: weight.clone() for name, weight in pipeline.unet.named_parameters()}
    loras.attach(pipeline, file, 1.0)
    downs = [key for key in tensors if key.endswith(".lora_A.weight")]
    assert len(downs) == len(adapter.trained(tuned)) // 2
    for key in downs:
        name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        layer = tuned.get_submodule(name)
        down, up = layer.lora_A["default"].weight.flatten(1), layer.lora_B["default"].weight.flatten(1)
        dense = (7 / 3 * up @ down).reshape(layer.get_base_layer().weight.shape)
        added = tensors[key.replace(".lora_A.", ".lora_B.")].flatten(1) @ tensors[key].flatten(1)
        torch.testing.assert_close(added.reshape(dense.shape), dense, rtol=1e-5, atol=1e-6)
        change = pipeline.unet.get_submodule(name).weight - before[f"{name}.weight"]
        torch.testing.assert_close(change, dense, rtol=1e-4, atol=1e-5)


def test_a_full_fine_tune_is_a_checkpoint_of_its_own(ready: Output, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    base = Path(shutil.copytree(ready.checkpoint.path, tmp_path / "base"))
    strangers = (
        "unet/diffusion_pytorch_model.bin",
        "v1-5.ckpt",
        "vae/notes.pt",
        "clip/code.py",
        ".git/config.json",
        "a.md",
    )
    for name in strangers:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"x")
    copied = dataclasses.replace(ready, checkpoint=dataclasses.replace(ready.checkpoint, place=str(base)))
    tuned = _tuned(copied, MatchSpec(adapter="full"), folder)
    assert not [name for name in strangers if (folder / name).exists()]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".txt", ".safetensors"}
    assert all((folder / name).is_file() for name in ready.checkpoint.files)
    assert (folder / "clip" / "model.safetensors").is_file()
    assert len(adapter.trained(tuned)) == len(list(tuned.parameters()))
    checked = checkpoints.inspect(ModelSpec(checkpoint=str(folder)), 8)
    assert checked.digest != ready.checkpoint.digest
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    torch.testing.assert_close(_predict(unet), _predict(tuned), rtol=0, atol=0)


def test_first_weights_depend_on_the_seed_alone(ready: Output) -> None:
    def first(seed: int) -> torch.Tensor:
        unet = checkpoints.load(ready.checkpoint, "cpu", "float32").unet
        torch.manual_seed(torch.seed())
        adapter.attach(unet, MatchSpec(rank=2), seed)
        return torch.cat([parameter.detach().flatten() for parameter in adapter.trained(unet)])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_new_adapter_changes_nothing_yet(ready: Output) -> None:
    unet = checkpoints.load(ready.checkpoint, "cpu", "float32").unet
    before = _predict(unet)
    adapter.attach(unet, MatchSpec(rank=2, targets="attention+conv"), 0)
    torch.testing.assert_close(_predict(unet), before)


@pytest.mark.parametrize("targets", [("to_q", "to_z"), ("nothing",), ("down_blocks",)])
def test_unknown_targets_are_refused_in_one_line(ready: Output, targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"named {targets[-1]}; it has .*to_q") as caught:
        adapter.check_targets(ready.checkpoint, MatchSpec(targets=targets))
    assert "\n" not in str(caught.value)
