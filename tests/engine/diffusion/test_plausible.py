"""Model files that lie are refused in one line within seconds, before anything is allocated; those of real models
pass."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.diffusion import plausible
from engine.diffusion.checkpoint import inspect
from engine.diffusion.weights import Tensor
from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec
from tests.support.families import SIZE, write_family

Lie = Callable[[Path], Any]


def setting(**values: Any) -> Lie:
    """Other values in a configuration."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


def instead(make: Callable[[Path], Any]) -> Lie:
    """Another kind of file in its place."""
    return lambda path: (path.unlink(), make(path))


DEEP = "[" * 200_000 + "]" * 200_000
LIES: dict[str, tuple[str, Lie, str]] = {
    "config is a pipe": ("unet/config.json", instead(os.mkfifo), "not a regular file"),
    "config links to a device": (
        "unet/config.json",
        instead(lambda path: path.symlink_to("/dev/zero")),
        "regular file",
    ),
    "config is a directory": ("vae/config.json", instead(Path.mkdir), "not a regular file"),
    "config nested": ("unet/config.json", lambda path: path.write_text(DEEP), "nested too deep"),
    "config nested a little": ("unet/config.json", setting(extra=json.loads("[" * 50 + "]" * 50)), "nested deeper"),
    "config of many megabytes": (
        "unet/config.json",
        lambda path: path.write_bytes(b" " * 17_000_000),
        "larger than 16 MiB",
    ),
    "config of many entries": ("unet/config.json", setting(block_out_channels=[8] * 60_000), "60000 entries"),
    "many blocks": ("unet/config.json", setting(block_out_channels=[8] * 40_000), "odd values"),
    "index is a pipe": ("model_index.json", instead(os.mkfifo), "not a diffusers directory"),
    "index nested": ("model_index.json", lambda path: path.write_text(DEEP), "nested too deep"),
    "tokenizer is a pipe": ("tokenizer/tokenizer_config.json", instead(os.mkfifo), "not a regular file"),
    "words are a pipe": ("tokenizer/tokenizer.json", instead(os.mkfifo), "not a regular file"),
    "weights are a pipe": ("unet/diffusion_pytorch_model.safetensors", instead(os.mkfifo), "not a regular file"),
    "side as text": ("unet/config.json", setting(sample_size="large"), "sample_size 'large', which is no number"),
    "giant side": ("unet/config.json", setting(sample_size=10**7), "sample_size 1e+07"),
    "negative width": ("unet/config.json", setting(cross_attention_dim=-64), "cross_attention_dim -64"),
    "width of NaN": ("unet/config.json", setting(cross_attention_dim=float("nan")), "which is no number"),
    "ten million layers": ("text_encoder/config.json", setting(num_hidden_layers=10**7), "num_hidden_layers 1e+07"),
    "more layers than tensors": ("text_encoder/config.json", setting(num_hidden_layers=5000), "5000 num_hidden_layers"),
    "layers in every block": ("unet/config.json", setting(layers_per_block=150), "layers in blocks"),
    "giant vocabulary": ("text_encoder/config.json", setting(vocab_size=10**6), "and the weights hold"),
    "giant layers": ("text_encoder/config.json", setting(intermediate_size=10**6), "and the weights hold"),
    "endless schedule": (
        "scheduler/scheduler_config.json",
        setting(num_train_timesteps=10**10),
        "num_train_timesteps 1e+10",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_one_line_within_ten_seconds_and_little_memory(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    file, lie, message = LIES[name]
    folder = Path(shutil.copytree(folders["digits"], tmp_path / "model"))
    lie(folder / file)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ConfigError) as caught:
        inspect(ModelSpec(checkpoint=str(folder)), 8)
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB: torch itself may be loaded here
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"sample_size": 4000}, "table of 2000 x 2000"), ({"num_layers": 3000}, "3000 num_layers")],
)
def test_a_transformer_that_lies_is_refused(tmp_path: Path, setting: dict[str, int], message: str) -> None:
    folder = write_family(tmp_path / "dit", "dit")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ConfigError, match=message):
        inspect(ModelSpec(checkpoint=str(folder)), SIZE)


# Of the configurations that were released, what could look like a lie, and how many tensors their weights have.
RELEASED: dict[str, tuple[dict[str, Any], int]] = {
    "SD 1.5 unet": (
        {
            "sample_size": 64,
            "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280, 1280],
            "attention_head_dim": 8,
        },
        686,
    ),
    "SDXL unet": (
        {
            "sample_size": 128,
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2, 10],
            "block_out_channels": [320, 640, 1280],
            "projection_class_embeddings_input_dim": 2816,
        },
        1680,
    ),
    "SDXL vae": ({"sample_size": 1024, "layers_per_block": 2, "block_out_channels": [128, 256, 512, 512]}, 248),
    "SD 3.5 transformer": (
        {
            "sample_size": 128,
            "pos_embed_max_size": 384,
            "patch_size": 2,
            "num_layers": 38,
            "dual_attention_layers": [],
            "pooled_projection_dim": 2048,
        },
        1249,
    ),
    "DiT-XL 512": ({"sample_size": 64, "patch_size": 2, "num_layers": 28, "num_embeds_ada_norm": 1000}, 621),
    "T5 XXL": (
        {"num_layers": 24, "num_decoder_layers": 24, "vocab_size": 32128, "d_ff": 10240, "n_positions": 512},
        219,
    ),
    "CLIP text": (
        {"num_hidden_layers": 12, "vocab_size": 49408, "max_position_embeddings": 77, "intermediate_size": 3072},
        196,
    ),
    "Qwen2-VL": (
        {
            "num_hidden_layers": 28,
            "vocab_size": 152064,
            "max_position_embeddings": 1010000,
            "rope_theta": 10000000,
            "max_window_layers": 28,
        },
        730,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_pass(name: str) -> None:
    config, count = RELEASED[name]
    tensors = {str(number): Tensor((1,), "F16") for number in range(count)}
    plausible.numbers(Path(name), config)
    plausible.repeats(Path(name), config, tensors)
