"""LoRA files by real peft: those that fit change the pictures by the scale, all others are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.diffusion import lora
from engine.diffusion.checkpoint import Checkpoint, load
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from tests.support.checkpoints import write_lora

Edit = Callable[..., Path]
REQUESTS = [Request(f"photo of digit {word}", seed) for seed, word in enumerate(["one", "two"])]


def draw(checkpoint: Checkpoint, file: Path | None, scale: float = 1.0, dtype: str = "float32") -> np.ndarray:
    pipeline = load(checkpoint, "cpu", dtype)
    if file is not None:
        lora.attach(pipeline, file, scale)
    sampler = Sampler(pipeline, GenerateSpec(num_inference_steps=2))
    return np.stack([drawn.pixels for drawn in sampler.draw(REQUESTS)]).astype(int)


@pytest.mark.parametrize("family", ["digits", "sd15", "sd21"])
def test_a_fitting_lora_passes_and_its_facts_are_those_of_the_file(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], family: str
) -> None:
    info = lora.check(loras[family], inspected[family])
    tensors = load_file(loras[family])
    assert info.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert 2 * (info.denoiser_modules + info.text_modules) == len(tensors)
    assert info.text_modules == 4 * {"digits": 2, "sd15": 2, "sd21": 3}[family]
    assert info.rank == 4


@pytest.mark.parametrize("family", ["sd15"])
def test_an_attached_lora_changes_the_pictures_and_more_with_a_larger_scale(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], family: str
) -> None:
    plain, small, tiny = (
        draw(inspected[family], file, scale) for file, scale in ((None, 0), (loras[family], 0.2), (loras[family], 1e-6))
    )
    assert np.abs(plain - small).mean() > 1
    assert np.abs(plain - tiny).max() <= 1


def test_a_merged_lora_equals_the_formula(inspected: dict[str, Checkpoint], loras: dict[str, Path]) -> None:
    """W + scale * (alpha / rank) * up @ down, alpha = rank in the file."""
    before, after = (load(inspected["digits"], "cpu", "float32") for _ in range(2))
    lora.attach(after, loras["digits"], 0.7)
    tensors = load_file(loras["digits"])
    weights = dict(before.unet.named_parameters()), dict(after.unet.named_parameters())
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    downs = [key for key in tensors if key.startswith("unet.") and ".down." in key]
    assert len(changed) == len(downs)
    for key in downs:
        name = key.removeprefix("unet.").removesuffix(".lora.down.weight") + ".weight"
        expected = weights[0][name] + 0.7 * tensors[key.replace(".lora.down.", ".lora.up.")] @ tensors[key]
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-5, atol=1e-6)


def test_the_text_encoder_is_changed_too(inspected: dict[str, Checkpoint], loras: dict[str, Path]) -> None:
    before = load(inspected["digits"], "cpu", "float32").text_encoder
    pipeline = load(inspected["digits"], "cpu", "float32")
    lora.attach(pipeline, loras["digits"], 1.0)
    after = dict(pipeline.text_encoder.named_parameters())
    changed = [name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])]
    assert len(changed) == lora.check(loras["digits"], inspected["digits"]).text_modules


def test_in_bfloat16_the_adapter_stays_beside_the_weights_and_acts(
    inspected: dict[str, Checkpoint], loras: dict[str, Path]
) -> None:
    plain, adapted = (load(inspected["digits"], "cpu", "bfloat16") for _ in range(2))
    lora.attach(adapted, loras["digits"], 0.5)
    kept = {name.replace(".base_layer", ""): weight for name, weight in adapted.unet.named_parameters()}
    assert all(torch.equal(kept[name], weight) for name, weight in plain.unet.named_parameters())
    images = [draw(inspected["digits"], file, 0.5, "bfloat16") for file in (None, loras["digits"])]
    assert np.abs(images[0] - images[1]).mean() > 1


@pytest.mark.parametrize(
    "targets", [("attn2.to_k", "attn2.to_v"), ("conv1", "conv2", "time_emb_proj"), ("proj_in", "ff.net.2")]
)
def test_other_choices_of_modules_pass(
    inspected: dict[str, Checkpoint], folders: dict[str, Path], tmp_path: Path, targets: tuple[str, ...]
) -> None:
    file = write_lora(tmp_path, folders["sd15"], targets=targets)
    assert lora.check(file, inspected["sd15"]).text_modules == 0


def kohya(path: Path, source: Path, alpha: float | None = 2.0) -> Path:
    """The same adapter by the names of the kohya-ss trainer."""
    tensors = {}
    for key, tensor in load_file(source).items():
        module, _, side = key.removesuffix(".weight").rpartition(".")
        module = module.removesuffix(".lora").removesuffix(".lora_linear_layer")
        module = module.replace("unet.", "lora_unet_", 1).replace("text_encoder.", "lora_te_", 1).replace(".", "_")
        if module.startswith("lora_te_encoder"):
            module = module.replace("lora_te_", "lora_te_text_model_")
        tensors[f"{module}.lora_{side}.weight"] = tensor
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def test_a_kohya_file_with_alphas_passes_and_changes_the_pictures_as_the_same_at_alpha_over_rank(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    file = kohya(tmp_path / "kohya.safetensors", loras["digits"])
    assert (
        lora.check(file, inspected["digits"]).denoiser_modules
        == lora.check(loras["digits"], inspected["digits"]).denoiser_modules
    )
    half = draw(inspected["digits"], loras["digits"], 0.5)
    assert np.abs(draw(inspected["digits"], file, 1.0) - half).max() <= 1
    assert np.abs(draw(inspected["digits"], None) - half).mean() > 1


@pytest.mark.parametrize(
    ("other", "message"), [("digits", "does not fit"), ("sd21", "reads width 64, the checkpoint's weight is (16, 48)")]
)
def test_a_lora_of_another_family_is_refused(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], other: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.check(loras[other], inspected["sd15"])
    assert message in str(caught.value)


def rename(old: str, new: str) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def keep(wanted: Callable[[str], bool]) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        for key in [key for key in tensors if not wanted(key)]:
            del tensors[key]

    return change


def poison(tensors: dict) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def untrain(tensors: dict) -> None:
    for key, tensor in tensors.items():
        if ".up." in key:
            tensor.zero_()


BROKEN: dict[str, tuple[Callable[[dict], None], str]] = {
    "NaN": (poison, "has NaN or infinite numbers"),
    "down only": (keep(lambda key: ".up." not in key), "only one of the two matrices"),
    "one up missing": (
        keep(lambda key: key != "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight"),
        "attn1.to_q: keys are missing",
    ),
    "one module": (
        keep(lambda key: not key.startswith("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v")),
        "covers 79 of 80 modules of the unet: mid_block.attentions.0.transformer_blocks.0.attn2.to_v is missing",
    ),
    "one module of the text encoder": (
        keep(lambda key: "layers.1.self_attn.k_proj" not in key),
        "of the text_encoder: encoder.layers.1.self_attn.k_proj is missing",
    ),
    "transformer": (rename("unet.", "transformer."), "keys for other models, such as transformer."),
    "second text encoder": (
        rename("text_encoder.", "text_encoder_2."),
        "keys for other models, such as text_encoder_2.",
    ),
    "no prefix": (rename("unet.", ""), "keys for other models"),
    "unknown modules": (rename("transformer_blocks.0.", "transformer_blocks.7."), "another family"),
    "untrained": (untrain, "changes nothing"),
    "extra": (lambda tensors: tensors.update({"unet.conv_in.bias_something": torch.ones(3)}), "is not LoRA's"),
    "DoRA": (lambda tensors: tensors.update({"unet.conv_in.dora_scale": torch.ones(3)}), "not a plain LoRA"),
    "other names": (rename("lora", "adapter"), "not"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_lora_that_would_not_be_used_whole_is_refused_in_one_line(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], edit: Edit, name: str
) -> None:
    change, message = BROKEN[name]
    with pytest.raises(ConfigError) as caught:
        lora.check(edit(loras["sd15"], change), inspected["sd15"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_that_asks_for_other_modules_than_the_keys_is_refused(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    """Diffusers follows the metadata and drops the keys of other modules in silence."""
    tensors = {key: value for key, value in load_file(loras["sd15"]).items() if key.startswith("unet.")}
    metadata = {"unet.r": 8, "unet.lora_alpha": 4, "unet.target_modules": ["to_q"]}
    save_file(tensors, tmp_path / "lying.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(ConfigError, match="which its own metadata does not name"):
        lora.check(tmp_path / "lying.safetensors", inspected["sd15"])


def test_files_that_are_no_safetensors_are_refused(
    inspected: dict[str, Checkpoint], loras: dict[str, Path], tmp_path: Path
) -> None:
    torch.save(load_file(loras["sd15"]), tmp_path / "lora.bin")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(loras["sd15"].read_bytes()[:-5])
    for file, message in (
        (tmp_path / "lora.bin", "is a pickle"),
        (cut, "not a whole safetensors file"),
        (tmp_path / "gone.safetensors", "is not a .safetensors file"),
        (tmp_path, "is not a .safetensors file"),
    ):
        with pytest.raises(ConfigError, match=message):
            lora.check(file, inspected["sd15"])
