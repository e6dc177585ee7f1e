"""Every LoRA dialect of docs/families.md against a dense oracle, W + scale x alpha / rank x up x down, for every
module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.diffusion import lora
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
from tests.support import loras
from tests.support.families import SIZE, write_family
from tests.support.loras import Module

Key = Callable[[Module], tuple[str, str, str]]
ALPHAS = (1.0, 4.0, 0.5, 3.0, -2.0)
RANKS = (4, 1, 2, 7)
SCALE = 0.7
PARTS = {
    "digits": ("unet", "text_encoder"),
    "xl": ("unet", "text_encoder", "text_encoder_2"),
    "sd3": ("transformer", "text_encoder", "text_encoder_2"),
    "dit": ("transformer",),
}
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def checkpoints(inspected: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One of each family."""
    root = tmp_path_factory.mktemp("families")
    others = {name: write_family(root / name, name) for name in ("xl", "sd3", "dit")}
    return {"digits": inspected["digits"]} | {
        name: inspect(ModelSpec(checkpoint=str(folder)), SIZE) for name, folder in others.items()
    }


def models_of(checkpoint: Checkpoint, family: str, dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    pipeline = load(checkpoint, "cpu", dtype)
    return pipeline, {part: getattr(pipeline, part) for part in PARTS[family]}


def every(part: str, name: str) -> bool:
    """All layers of the denoiser; those of a text encoder that trainers adapt."""
    return not part.startswith("text_encoder") or name.endswith((*CLIP, "text_projection"))


def attention(part: str, name: str) -> bool:
    """What the oldest files of diffusers could hold."""
    ends = CLIP[:4] if part.startswith("text_encoder") else ("to_q", "to_k", "to_v", "to_out.0")
    return name.endswith(ends)


def named_by_diffusers(part: str, name: str) -> bool:
    """All but what diffusers' converter cannot name: a layer of SDXL's added embedding, by diffusers' own name."""
    return every(part, name) and not name.startswith("add_embedding")


DIALECTS: dict[str, tuple[str, Key, Callable[[str, str], bool], bool]] = {
    "peft": ("digits", loras.peft, every, False),
    "peft, keys with alpha": ("digits", loras.peft, every, True),
    "diffusers": ("digits", loras.diffusers, every, False),
    "diffusers, keys with alpha": ("digits", loras.diffusers, every, True),
    "diffusers before 0.20": ("digits", loras.old_diffusers, attention, False),
    "kohya": ("digits", loras.kohya, every, True),
    "kohya without alphas": ("digits", loras.kohya, every, False),
    "SDXL peft": ("xl", loras.peft, every, True),
    "SDXL diffusers": ("xl", loras.diffusers, every, True),
    "SDXL kohya, diffusers' names": ("xl", loras.kohya_two, named_by_diffusers, True),
    "SDXL kohya, Stability's names": ("xl", loras.sgm, every, True),
    "SD3 peft": ("sd3", loras.peft, every, True),
    "SD3 diffusers": ("sd3", loras.diffusers, every, True),
    "DiT peft": ("dit", loras.peft, every, True),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_module_changes_by_alpha_over_rank_times_up_times_down(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, dialect: str
) -> None:
    """Ranks and alphas differ from module to module, as in files that kohya-ss has resized."""
    family, key, wanted, alphas = DIALECTS[dialect]
    _, before = models_of(checkpoints[family], family)
    modules = loras.modules_of(before, wanted, alphas=ALPHAS if alphas else (None,), ranks=RANKS)
    file = loras.write(tmp_path / "lora.safetensors", modules, key)
    check_against_dense(checkpoints[family], family, file, modules)


def check_against_dense(checkpoint: Checkpoint, family: str, file: Path, modules: list[Module]) -> None:
    """The file passes; each named weight changes as the oracle says, and nothing else does."""
    pipeline, after = models_of(checkpoint, family)
    _, before = models_of(checkpoint, family)
    info = lora.check(file, checkpoint)
    assert info.denoiser_modules + info.text_modules == len(modules)
    assert info.rank == max(module.rank for module in modules)
    lora.attach(pipeline, file, SCALE)
    for part in PARTS[family]:
        changes = {f"{module.name}.weight": module.dense() for module in modules if module.part == part}
        weights = dict(after[part].named_parameters())
        assert list(weights) == [name for name, _ in before[part].named_parameters()]
        for name, weight in before[part].named_parameters():
            expected = weight.double() + SCALE * changes[name] if name in changes else weight
            torch.testing.assert_close(weights[name], expected.float(), rtol=1e-5, atol=1e-6, msg=f"{part}.{name}")


def test_in_bfloat16_each_layer_adds_the_same_beside_the_weights(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """The change of the output of a layer, of the whole file with differing alphas, within a bfloat16 step."""
    pipeline, models = models_of(checkpoints["digits"], "digits", "bfloat16")
    modules = loras.modules_of(models, every, alphas=ALPHAS, ranks=RANKS)
    lora.attach(pipeline, loras.write(tmp_path / "lora.safetensors", modules, loras.kohya), SCALE)
    for module in modules:
        layer = models[module.part].get_submodule(module.name)
        seen = layer.get_delta_weight("mimeo").double()
        bound = 0.03 * float(module.dense().abs().max())
        torch.testing.assert_close(seen, SCALE * module.dense(), rtol=0, atol=bound, msg=module.name)


@pytest.mark.parametrize("family", ["digits", "xl"])
def test_some_blocks_only_are_legal(checkpoints: dict[str, Checkpoint], tmp_path: Path, family: str) -> None:
    """As B-LoRA (arXiv 2403.14572), which trains the attentions of one block, and as kohya-ss with block dims of 0."""
    _, models = models_of(checkpoints[family], family)

    def one_block(part: str, name: str) -> bool:
        return part == "unet" and name.startswith("up_blocks.") and attention(part, name) and "attentions.0." in name

    modules = loras.modules_of(models, one_block)
    assert 0 < len(modules) < len(loras.modules_of({"unet": models["unet"]}, attention))
    check_against_dense(
        checkpoints[family], family, loras.write(tmp_path / "b.safetensors", modules, loras.diffusers), modules
    )


def metadata(part: str = "unet", **options: Any) -> dict[str, Any]:
    return {f"{part}.{key}": value for key, value in {"r": 4, "lora_alpha": 4, "peft_type": "LORA", **options}.items()}


def two_layers(part: str, name: str) -> bool:
    return part == "unet" and name in ("mid_block.attentions.0.proj_in", "mid_block.resnets.0.conv1")


PATTERNS = {
    "alpha": ({"lora_alpha": 6.0}, (6.0, 6.0)),
    "rank and alpha of a module": (
        {"r": 2, "rank_pattern": {"^mid_block.resnets.0.conv1": 4, "proj_in": 4}, "alpha_pattern": {"conv1": 1.0}},
        (1.0, 4.0),
    ),
    "rank-stabilised": ({"lora_alpha": 6.0, "use_rslora": True}, (12.0, 12.0)),  # 6 / sqrt(4) = 12 / 4
    "gaussian": ({"init_lora_weights": "gaussian", "lora_dropout": 0.1}, (4.0, 4.0)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_metadata_of_peft_decide_the_factor(checkpoints: dict[str, Checkpoint], tmp_path: Path, name: str) -> None:
    options, alphas = PATTERNS[name]
    _, models = models_of(checkpoints["digits"], "digits")
    plain = loras.modules_of(models, two_layers, ranks=(4,))
    order = {"mid_block.resnets.0.conv1": 0, "mid_block.attentions.0.proj_in": 1}
    expected = [Module(m.part, m.name, m.down, m.up, alphas[order[m.name]]) for m in plain]
    named = metadata(target_modules=[m.name for m in plain], **options)
    file = loras.write(tmp_path / "lora.safetensors", plain, loras.peft, named)
    check_against_dense(checkpoints["digits"], "digits", file, expected)


REFUSED_METADATA = {
    "DoRA": ({"use_dora": True}, "not a plain LoRA (its metadata ask for use_dora)"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4, which changes the base"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights: olora, which changes the base"),
    "biases": ({"bias": "all"}, "bias: all"),
    "an option of tomorrow": ({"use_newlora": True}, "use_newlora"),
    "alpha 0": ({"lora_alpha": 0}, "alpha 0; some tools take 0 for no change"),
    "another rank": ({"r": 8}, "rank 4, but its own metadata asks for another"),
    "no numbers": ({"r": "many"}, "metadata that peft cannot have written (r:"),
    "a pattern": ({"rank_pattern": {"(a+)+$": 4}}, "metadata that peft cannot have written (rank_pattern"),
    "other modules": ({"target_modules": ["to_q"]}, "which its own metadata does not name"),
    "lost modules": ({"target_modules": ["proj_in", "conv1"]}, "is missing; keys were lost"),
}


@pytest.mark.parametrize("name", REFUSED_METADATA)
def test_metadata_that_cannot_be_followed_are_refused(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, name: str
) -> None:
    options, message = REFUSED_METADATA[name]
    _, models = models_of(checkpoints["digits"], "digits")
    modules = loras.modules_of(models, two_layers, ranks=(4,))
    named = metadata(**{"target_modules": [m.name for m in modules], **options})
    file = loras.write(tmp_path / "lora.safetensors", modules, loras.peft, named)
    with pytest.raises(ConfigError) as caught:
        lora.check(file, checkpoints["digits"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _edited(change: Callable[[loras.Tensors], None], key: Key = loras.kohya) -> Callable[[Path, list[Module]], Path]:
    def build(path: Path, modules: list[Module]) -> Path:
        from safetensors.torch import load_file, save_file

        loras.write(path, modules, key)
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        return path

    return build


MID = "lora_unet_mid_block_attentions_0_proj_in"
REFUSED_FILES = {
    "alpha 0": (_edited(lambda t: t.update({f"{MID}.alpha": torch.tensor(0.0)})), "alpha 0; some tools take 0"),
    "alpha of many numbers": (_edited(lambda t: t.update({f"{MID}.alpha": torch.ones(3)})), "not a Stable Diffusion"),
    "alpha without matrices": (
        _edited(lambda t: t.update({"unet.mid_block.resnets.0.conv2.alpha": torch.tensor(2.0)}), loras.peft),
        "only one of the two matrices",
    ),
    "alpha of many numbers, peft": (
        _edited(lambda t: t.update({"unet.mid_block.resnets.0.conv1.alpha": torch.ones(3)}), loras.peft),
        "not a number",
    ),
    "a module twice": (
        _edited(
            lambda t: t.update({"unet.mid_block.resnets.0.conv1.lora.down.weight": torch.ones(4, 64, 3, 3)}), loras.peft
        ),
        "twice",
    ),
    "Tucker": (_edited(lambda t: t.update({f"{MID}.lora_mid.weight": torch.ones(4, 4)})), "has lora_unet"),
    "LoHa": (_edited(lambda t: t.update({f"{MID}.hada_w1_a": torch.ones(4, 4)})), "not a plain LoRA"),
    "LoKr": (_edited(lambda t: t.update({f"{MID}.lokr_w1": torch.ones(4, 4)})), "not a plain LoRA"),
    "full difference": (_edited(lambda t: t.update({f"{MID}.diff": torch.ones(64, 64)})), "not a Stable Diffusion"),
    "DoRA": (_edited(lambda t: t.update({f"{MID}.dora_scale": torch.ones(64)})), "not a plain LoRA"),
    "a norm": (
        _edited(
            lambda t: t.update({f"unet.conv_norm_out.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}), loras.peft
        ),
        "lacks 1 of 3 modules, such as conv_norm_out",
    ),
    "peft's own folder": (
        _edited(lambda t: t.update({"base_model.model.conv_in.lora_A.weight": torch.ones(2, 2)}), loras.peft),
        "keys for other models, such as base_model",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_files_that_are_no_plain_lora_are_refused(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, name: str
) -> None:
    build, message = REFUSED_FILES[name]
    _, models = models_of(checkpoints["digits"], "digits")
    modules = loras.modules_of(models, two_layers, ranks=(4,))
    with pytest.raises(ConfigError) as caught:
        lora.check(build(tmp_path / "lora.safetensors", modules), checkpoints["digits"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_converter_of_diffusers_refuses_what_it_cannot_name(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """SDXL's added embedding by diffusers' own name in a file of kohya-ss; Stability's name of it is read."""
    _, models = models_of(checkpoints["xl"], "xl")
    modules = loras.modules_of(models, lambda part, name: part == "unet" and name.startswith("add_embedding"))
    with pytest.raises(ConfigError):
        lora.check(loras.write(tmp_path / "a.safetensors", modules, loras.kohya_two), checkpoints["xl"])


def test_dora_that_only_the_trainers_notes_tell_of_is_refused(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    _, models = models_of(checkpoints["digits"], "digits")
    file = loras.write(tmp_path / "lora.safetensors", loras.modules_of(models, two_layers), loras.kohya)
    save_file(load_file(file), file, {"ss_network_args": '{"dora_wd": "True"}'})
    with pytest.raises(ConfigError, match="its metadata say dora_wd"):
        lora.check(file, checkpoints["digits"])
