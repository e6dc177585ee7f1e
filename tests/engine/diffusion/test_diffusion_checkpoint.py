"""Checkpoints: the facts of sound ones, a refusal for each way to be broken, and loading."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from engine.diffusion.checkpoint import Checkpoint, check_generate, inspect, load, size_note
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec, ModelSpec
from tests.support.checkpoints import write_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def at(folder: Path, size: int = 64) -> Checkpoint:
    return inspect(ModelSpec(checkpoint=str(folder)), size)


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sd15"], tmp_path / "sd15"))


def configure(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_facts_of_each_family(inspected: dict[str, Checkpoint]) -> None:
    facts = {
        name: (c.latent_channels, c.latent_size, c.places, c.text_length, c.prediction_type, c.feature_dim)
        for name, c in inspected.items()
    }
    assert facts == {
        "digits": (4, 4, {64: (15, 0)}, 16, "epsilon", 64),
        "sd15": (4, 8, {48: (76, 0)}, 77, "epsilon", None),
        "sd21": (4, 8, {64: (76, 0)}, 77, "v_prediction", None),
    }
    assert [c.has_image_encoder for c in inspected.values()] == [True, False, False]


def test_parameters_are_those_of_the_three_models(inspected: dict[str, Checkpoint], folders: dict[str, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folders["digits"], safety_checker=None)
    models = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert inspected["digits"].parameters == sum(p.numel() for model in models for p in model.parameters())


def test_digest_depends_on_weights_and_settings_and_on_nothing_else(copy: Path) -> None:
    before = at(copy).digest
    (copy / "README.md").write_text("words")
    assert at(copy).digest == before
    rewrite(copy / UNET, lambda tensors: tensors["conv_in.bias"].add_(1))
    changed = at(copy).digest
    configure(copy / "scheduler/scheduler_config.json", beta_end=0.013)
    assert len({before, changed, at(copy).digest}) == 3


def test_half_precision_files_and_shards_are_read(copy: Path, folders: dict[str, Path]) -> None:
    rewrite(
        copy / TEXT, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items() if v.is_floating_point()})
    )
    (copy / TEXT).rename(copy / "text_encoder/model.fp16.safetensors")
    unet = UNet2DConditionModel.from_pretrained(folders["sd15"], subfolder="unet")
    (copy / UNET).unlink()
    unet.save_pretrained(copy / "unet", max_shard_size="500KB")
    found = at(copy)
    assert sum(name.startswith("unet/") and name.endswith(".safetensors") for name in found.files) > 2
    loaded = load(found, "cpu", "float32")
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), unet.parameters(), strict=True))
    assert loaded.text_encoder.dtype == torch.float32


@pytest.mark.parametrize("size", [8, 16, 24, 64])
def test_sizes_other_than_the_trained_one_fit(folders: dict[str, Path], size: int) -> None:
    assert at(folders["digits"], size).latent_size == size // 2


@pytest.mark.parametrize(("family", "size"), [("digits", 12), ("sd15", 8), ("sd15", 56), ("sd15", 60), ("sd15", 100)])
def test_sizes_that_do_not_fit_are_refused(folders: dict[str, Path], family: str, size: int) -> None:
    smallest = {"digits": 8, "sd15": 64}[family]
    with pytest.raises(
        ConfigError, match=rf"images.size: {size} pixels do not fit .* a multiple of 8 from {smallest} on"
    ):
        at(folders[family], size)


def remove(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def poison(name: str, tensor: str, value: float) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / name, lambda tensors: tensors[tensor].view(-1)[-1].fill_(value))


def drop(name: str, tensor: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / name, lambda tensors: tensors.pop(tensor))


def setting(name: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: configure(folder / name, **changes)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (remove("model_index.json"), "is not a diffusers directory"),
    "no unet": (remove("unet"), "unet: is missing"),
    "no scheduler": (remove("scheduler"), "scheduler: is missing"),
    "no vae config": (remove("vae/config.json"), "vae/config.json: is missing"),
    "no text weights": (remove(TEXT), "text_encoder: has no weights"),
    "no vocabulary": (remove("tokenizer/vocab.json"), "vocab.json: is missing"),
    "no tokenizer config": (remove("tokenizer/tokenizer_config.json"), "tokenizer_config.json: is missing"),
    "empty weights": (cut(UNET, 0), "is empty"),
    "truncated weights": (cut(UNET, 100_000), "is not a whole safetensors file"),
    "truncated by a byte": (cut(VAE, -1), "is not a whole safetensors file"),
    "broken vocabulary": (cut("tokenizer/vocab.json", 100), "tokenizer: cannot be loaded"),
    "broken config": (cut("unet/config.json", 100), "unet/config.json: is not JSON"),
    "NaN in the U-Net": (poison(UNET, "conv_in.weight", float("nan")), "tensor conv_in.weight has NaN"),
    "Inf in the VAE": (
        poison(VAE, "decoder.conv_out.bias", float("inf")),
        "tensor decoder.conv_out.bias has NaN or inf",
    ),
    "NaN in the text encoder": (
        poison(TEXT, "text_model.final_layer_norm.bias", float("nan")),
        "model.safetensors: tensor text_model.final_layer_norm.bias",
    ),
    "missing weight": (drop(UNET, "conv_out.bias"), "unet: lacks 1 weights of its model, such as conv_out.bias"),
    "missing text weight": (drop(TEXT, "text_model.final_layer_norm.bias"), "text_encoder: lacks 1 weights"),
    "foreign weight": (
        lambda folder: rewrite(folder / UNET, lambda tensors: tensors.update({"extra.weight": torch.ones(2)})),
        "unet: has unknown 1 weights of its model, such as extra.weight",
    ),
    "other width": (
        setting("unet/config.json", cross_attention_dim=768),
        "tokens of width 768, the text encoder writes 48",
    ),
    "inpainting": (setting("unet/config.json", in_channels=9), "takes 9 channels"),
    "XL inputs": (setting("unet/config.json", addition_embed_type="text_time"), "addition_embed_type"),
    "wrong config": (setting("unet/config.json", layers_per_block=2), "unet: "),
    "odd config": (setting("unet/config.json", block_out_channels=7), "odd values"),
    "hostile config": (setting("unet/config.json", norm_num_groups=0), "unet: cannot be loaded"),
    "x0 prediction": (setting("scheduler/scheduler_config.json", prediction_type="sample"), "predicts 'sample'"),
    "noise at zero SNR": (
        setting("scheduler/scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=True),
        "use a checkpoint of v_prediction",
    ),
    "remote code": (setting("text_encoder/config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "code file": (lambda folder: (folder / "unet/mine.py").write_text("1"), "is code in a checkpoint"),
    "vocabulary too large": (
        lambda folder: configure(folder / "tokenizer/vocab.json", **{f"new{n}": 1000 + n for n in range(9)}),
        "tokenizer: has 562 tokens, the text encoder knows 553",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(copy: Path, name: str) -> None:
    act, message = BROKEN[name]
    act(copy)
    with pytest.raises(ConfigError) as caught:
        at(copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_structural_faults_are_found_without_torch(copy: Path) -> None:
    cut(UNET, 5000)(copy)
    code = f"""
import sys
from engine.diffusion.checkpoint import inspect
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
try:
    inspect(ModelSpec(checkpoint={str(copy)!r}), 64)
except ConfigError as error:
    print("whole safetensors" in str(error), not {{"torch", "diffusers", "transformers"}} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_code_in_the_directory_never_runs(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copy / "pipeline.py").write_text(f"open({str(marker)!r}, 'w')")
    configure(copy / "model_index.json", _class_name=["pipeline", "Mine"])
    with pytest.raises(ConfigError):
        at(copy)
    assert not marker.exists()


@pytest.mark.parametrize("family", ["digits", "sd15", "sd21"])
def test_loaded_weights_equal_those_of_stock_loading(
    inspected: dict[str, Checkpoint], folders: dict[str, Path], family: str
) -> None:
    stock = StableDiffusionPipeline.from_pretrained(folders[family], safety_checker=None)
    ours = load(inspected[family], "cpu", "float32")
    for name in ("unet", "vae", "text_encoder"):
        pairs = zip(getattr(stock, name).named_parameters(), getattr(ours, name).named_parameters(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert type(ours.scheduler) is type(stock.scheduler)
    assert ours.tokenizer("photo of a digit").input_ids == stock.tokenizer("photo of a digit").input_ids
    assert ours.safety_checker is None


def test_the_default_size_of_the_loaded_pipeline_is_the_asked_one(folders: dict[str, Path]) -> None:
    pipeline = load(at(folders["digits"], 16), "cpu", "float32")
    images = pipeline(["one"], num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_of_every_model(inspected: dict[str, Checkpoint], dtype: str) -> None:
    pipeline = load(inspected["digits"], "cpu", dtype)
    found = {p.dtype for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in model.parameters()}
    assert found == {getattr(torch, dtype)}


def test_loading_leaves_the_libraries_bars_and_log_levels_as_they_were(inspected: dict[str, Checkpoint]) -> None:
    import transformers

    before = (diffusers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled())
    load(inspected["digits"], "cpu", "float32")
    assert (diffusers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ({"num_inference_steps": 3, "strength": 0.3, "pairing": "own"}, "generate.strength"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, "lcm cannot run 60 steps"),
        ({"scheduler": "eulr"}, "did you mean euler"),
    ],
)
def test_sampling_that_cannot_run_is_refused(inspected: dict[str, Checkpoint], generate: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_generate(inspected["digits"], GenerateSpec(**generate))


def test_another_number_of_latent_channels_is_accepted(tmp_path: Path) -> None:
    assert at(write_checkpoint(tmp_path / "eight", "digits", latent_channels=8), 8).latent_channels == 8


INSPECTED = """
import sys
from engine.diffusion.checkpoint import inspect
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
try:
    inspect(ModelSpec(checkpoint=sys.argv[1]), 8)
except ConfigError as error:
    print(error)
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""


def test_what_has_passed_on_this_node_is_not_loaded_again(
    copy: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path / "cache"))

    def inspected_anew() -> str:
        command = [sys.executable, "-c", INSPECTED, str(folders["digits"])]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert inspected_anew() == "['torch', 'diffusers', 'transformers']\n"
    assert inspected_anew() == "[]\n"
    at(copy)
    rewrite(copy / UNET, lambda tensors: tensors["conv_in.bias"].fill_(torch.nan))
    with pytest.raises(ConfigError, match="NaN or infinite"):
        at(copy)


def test_another_size_than_the_checkpoints_own_is_told(folders: dict[str, Path]) -> None:
    """digits has 4 latent pixels of 2, sd15 8 of 8."""
    assert size_note(folders["digits"], 8) is None
    assert size_note(folders["sd15"], 64) is None
    assert "images.size is 32, the generator's own size is 64" in str(size_note(folders["sd15"], 32))
