"""The generator in pixels: what it is told and learns, its views and held-out images, and runs that were killed or have
two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from engine.diffusion.checkpoint import inspect, load
from engine.diffusion.process import Edm, Flow
from engine.diffusion.sampler import Request, Sampler
from engine.diffusion.tiny import pixelmodels
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.spec.recipe import ModelSpec
from engine.spec.training import PixelSpec, ViewsSpec
from engine.training.judge_model import AUGMENTATIONS
from engine.training.latent_cache import Cache
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.pixel_stage import PixelStage, build_cache
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.views import WIDTH, Views
from engine.training.setup import Place
from tests.support.training import CPU, digits, pixel_spec, training, weights

ROOT = Path(__file__).resolve().parents[4]
CHOSEN: dict[str, Any] = {"held_out": 0.25, "views": {"probability": 0.5}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _stage(count: int = 10, **pretrain: Any) -> tuple[PixelStage, Cache]:
    spec = pixel_spec(**pretrain)
    views = Views(spec.pretrain.views) if spec.pretrain.views.probability else None
    setting = Setting(spec, Place(0, 1, CPU), digits(count), AUGMENTATIONS["none"], views)
    tokenizer = train_tokenizer(["a"], spec.pretrain.text_length)
    cache, factor = build_cache(setting, tokenizer, ClipStage(setting, tokenizer).model, None)
    assert factor == 1.0
    return PixelStage(setting, cache), cache


class _Listener(nn.Module):
    """Keeps what it is asked, and predicts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[torch.Tensor, torch.Tensor, Any]] = []

    def forward(self, *args: Any, class_labels: Any) -> Any:
        self.asked.append((*args, class_labels))
        return type("Output", (), {"sample": torch.zeros_like(args[-2])})


def test_the_loss_is_edms() -> None:
    """Of a network that predicts nothing: the mean of (z - c_skip x)^2 / c_out^2, whose c_in x and c_noise it is
    given."""
    stage, cache = _stage(pixel={"batch": 64})
    listener = _Listener()
    loss = float(stage.loss(listener, 3))
    [(taken, times, classes)] = listener.asked
    s = torch.exp(4 * times)[:, None, None, None]
    noisy = taken * (s**2 + 0.25).sqrt()
    every = cache.latents[0]
    implied = (noisy[:, None] - every[None]) / s[:, None]
    rows = (implied.square().mean((2, 3, 4)) - 1).abs().argmin(1)  # whose noise is most like a normal draw
    certain = s.flatten() < 0.3
    assert (cache.labels[rows][certain & (classes < 10)] == classes[certain & (classes < 10)]).all()
    clean = every[rows]
    error = ((clean - 0.25 / (s**2 + 0.25) * noisy) / (s * 0.5 / (s**2 + 0.25).sqrt())).square()
    assert loss == pytest.approx(float(error.mean()), rel=0.02)


def test_the_loss_of_flow_matching_is_that_of_the_velocity() -> None:
    """Of a network that predicts nothing: the mean of (e - z)^2, at times whose logit is N(-1.2, 1.2^2), given (1 - s)
    z + s e."""
    stage, cache = _stage(pixel={"batch": 500, "objective": "flow"})
    assert isinstance(stage.process, Flow)
    listener = _Listener()
    loss = float(stage.loss(listener, 3))
    [(taken, times, classes)] = listener.asked
    s = (times / 1000)[:, None, None, None]
    logits = torch.logit(s.double().flatten())
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((-1.2, 1.2), abs=0.15)
    every = cache.latents[0]
    implied = (taken[:, None] - (1 - s[:, None]) * every[None]) / s[:, None]
    rows = (implied.square().mean((2, 3, 4)) - 1).abs().argmin(1)
    certain = s.flatten() < 0.25
    assert (cache.labels[rows][certain & (classes < 10)] == classes[certain & (classes < 10)]).all()
    clean = every[rows]
    noise = (taken - (1 - s) * clean) / s
    assert loss == pytest.approx(float((noise - clean).square().mean()), rel=0.03)
    assert stage.error_on(cache) == pytest.approx(1 + float(every.square().mean()), rel=0.05)


def test_a_generator_trained_by_flow_matching_draws(tmp_path: Path) -> None:
    spec = pixel_spec(pixel={"objective": "flow", "steps": 8})
    assert training(tmp_path, spec).run()["done"]
    found = inspect(ModelSpec(checkpoint=str(tmp_path / "model")), spec.images.size)
    assert (found.family, found.prediction_type) == ("DDPMPipeline", "flow")
    generate = spec.generate.model_copy(update={"scheduler": "flow_heun", "num_inference_steps": 3})
    [drawn] = Sampler(load(found, "cpu", "float32"), generate).draw([Request("", 1, label=3)])
    assert drawn.reason is None


def test_the_null_class_is_told_as_often_as_asked() -> None:
    stage, _ = _stage(pixel={"drop_condition": 0.25, "batch": 500})
    listener = _Listener()
    for step in range(6):
        stage.loss(listener, step)
    classes = torch.cat([one[-1] for one in listener.asked])
    assert classes.max() == 10
    assert (classes == 10).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_features_are_dropped_with_the_class_and_alone() -> None:
    stage, cache = _stage(pixel={"features": True, "drop_condition": 0.25, "drop_image": 0.5, "batch": 500})
    listener = _Listener()
    for step in range(6):
        stage.loss(listener, step)
    classes = torch.cat([told["labels"] for *_, told in listener.asked])
    states = torch.cat([told["states"][:, 0] for *_, told in listener.asked])
    bare = (states == 0).all(1)
    assert bare[classes == 10].all()
    assert bare[classes < 10].double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert cache.tokens is not None
    own = [(cache.tokens[0] == state).all(1).nonzero() for state in states[~bare][:50]]
    assert all(len(found) == 1 for found in own)
    assert [int(cache.labels[found[0, 0]]) for found in own] == classes[~bare][:50].tolist()


def test_views_are_of_the_batchs_images_and_told_by_their_labels() -> None:
    stage, cache = _stage(pixel={"batch": 64}, views={"probability": 0.4})
    listener = _Listener()
    stage.loss(listener, 0)
    [(labels, taken, times, classes)] = listener.asked
    assert labels.shape == (64, WIDTH)
    rows = stage._setting.rows("pixel", 0, 64)
    told = classes < 10
    assert (cache.labels[rows][told] == classes[told]).all()
    s = torch.exp(4 * times)[:, None, None, None]
    off = (taken * (s**2 + 0.25).sqrt() - normalise(stage._setting.images.pixels[rows])) / s
    plain, quiet = (labels == 0).all(1), s.flatten() < 0.3
    assert off[plain].std().item() == pytest.approx(1, abs=0.05)
    assert off[~plain & quiet].std() > 1.2


def test_every_channel_is_told_noise_level_and_class() -> None:
    """A group norm after a sum takes the mean of each group out again; at the default widths each has to learn of
    both."""
    for blocks in ((8, 8), (32, 64)):
        unet: Any = pixelmodels.build_unet(PixelSpec(blocks=blocks, dropout=0), 8, 3).eval()
        nn.init.normal_(unet.conv_out.weight)
        images = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1)
        changed: dict[str, float] = {}
        with torch.no_grad():
            for name, times, classes in (
                ("class", torch.zeros(4), torch.arange(4)),
                ("noise", torch.linspace(-1, 1, 4), torch.zeros(4, dtype=torch.int64)),
            ):
                first = unet.down_blocks[0].resnets[0].norm2
                seen: list[torch.Tensor] = []
                handle = (
                    unet.down_blocks[0]
                    .resnets[0]
                    .conv2.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
                )
                output = unet(images, times, class_labels=classes).sample
                handle.remove()
                changed[name] = float((seen[0][1:] - seen[0][:1]).abs().amax((0, 2, 3)).min())
                assert (output[1:] - output[:1]).abs().max() > 1e-3, (blocks, name)
                assert first.num_channels // first.num_groups >= 4
        assert min(changed.values()) > 1e-3, blocks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_few_steps_lower_the_loss(dtype: str) -> None:
    stage, cache = _stage(pixel={"dtype": dtype, "batch": 16, "dropout": 0.0, "steps": 30})
    before = stage.error_on(cache)
    optimizer = torch.optim.AdamW(stage.module.parameters(), 3e-3)
    for step in range(30):
        optimizer.zero_grad()
        stage.loss(stage.module, step).backward()
        optimizer.step()
    assert all(parameter.dtype == torch.float32 for parameter in stage.module.parameters())
    assert stage.error_on(cache) < 0.8 * before


def test_the_error_of_no_prediction_is_that_of_the_images() -> None:
    """The output layer begins at zero: E[aim^2] = (s^2 E[z^2] + d^4) / (d^2 (s^2 + d^2)), averaged over ln s ~ N(-1.2,
    1.2^2)."""
    stage, cache = _stage(24)
    from scipy.stats import norm

    s = np.exp(norm(-1.2, 1.2).ppf((np.arange(2000) + 0.5) / 2000))
    square = float(cache.latents.square().mean())
    expected = ((s**2 * square + 0.0625) / (0.25 * (s**2 + 0.25))).mean()
    assert stage.error_on(cache) == pytest.approx(expected, rel=0.05)
    assert isinstance(stage.process, Edm)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert training(folder, pixel_spec(**CHOSEN)).run()["done"]
    return folder


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("pretrain-*.pt"))


def _snapshots(folder: Path) -> torch.Tensor:
    state = torch.load(_checkpoints(folder)[-1], weights_only=True)
    found: torch.Tensor = state["loop"]["kept"]["snapshots"]
    return found


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, unbroken: Path) -> None:
    command = [sys.executable, "-m", "tests.support.training", str(tmp_path), "8", "pixel"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(int(path.stem[-9:]) > 8 for path in _checkpoints(tmp_path)):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model" / "mimeo.json").exists()
    assert training(tmp_path, pixel_spec(**CHOSEN)).run()["done"]
    assert weights(tmp_path) == weights(unbroken)
    assert {"model/guide/diffusion_pytorch_model.safetensors"} < weights(unbroken).keys()
    assert torch.equal(_snapshots(tmp_path), _snapshots(unbroken))
    results = [json.loads((folder / "results/pretrain.json").read_text()) for folder in (tmp_path, unbroken)]
    assert results[0]["held_out"] == results[1]["held_out"]


def test_runs_stopped_by_the_time_limit_go_on(tmp_path: Path, unbroken: Path) -> None:
    runs = 0
    while not training(tmp_path, pixel_spec(**CHOSEN), deadline=time.time()).run()["done"]:
        runs += 1
        assert runs < 30
    assert runs > 3
    assert weights(tmp_path) == weights(unbroken)


def test_no_training_sees_held_out_images(tmp_path: Path, unbroken: Path) -> None:
    """Other pixels in their place: the same weights at every step, other errors."""
    spec = pixel_spec(**CHOSEN)
    plain = training(tmp_path, spec)
    assert plain.setting.held is not None
    kept, held = plain.setting.images, plain.setting.held
    assert (len(kept), len(held)) == (18, 6)
    noise = torch.randint(0, 256, held.pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain.setting = replace(plain.setting, held=replace(held, pixels=noise))
    plain.run()
    assert torch.equal(_snapshots(tmp_path), _snapshots(unbroken))
    one, other = (json.loads((folder / "results/pretrain.json").read_text()) for folder in (tmp_path, unbroken))
    assert one["held_out"]["pixel"]["train"] == other["held_out"]["pixel"]["train"]
    assert one["held_out"]["pixel"]["held"] != other["held_out"]["pixel"]["held"]


def test_what_is_published_is_the_chosen_average_and_the_guide_an_earlier_one(unbroken: Path) -> None:
    found = json.loads((unbroken / "results/pretrain.json").read_text())["held_out"]["pixel"]
    by_length = dict(map(tuple, found["lengths"]))
    assert found["chosen_step"] == found["step"][int(np.argmin(found["held"]))]
    assert by_length[found["chosen_length"]] == min(by_length.values())
    again = training(unbroken, pixel_spec(**CHOSEN))
    stage = PixelStage(again.setting, build_cache(again.setting, again.tokenizer, None, None)[0])
    stage.kept["snapshots"].copy_(_snapshots(unbroken))
    names = [name.removeprefix("model.") for name, _ in stage.module.named_parameters()]
    for part, step in (("unet", found["chosen_step"]), ("guide", 1)):
        expected = dict(zip(names, stage.ema.weights(step, found["chosen_length"]), strict=True))
        written = load_file(unbroken / "model" / part / "diffusion_pytorch_model.safetensors")
        assert written.keys() == expected.keys() - {"layer.weight"}
        assert all(torch.equal(value, expected[name]) for name, value in written.items())


def test_without_held_out_images_the_recipes_length_is_taken(tmp_path: Path) -> None:
    assert training(tmp_path, pixel_spec(pixel={"ema": 0.2, "guide": 0.0})).run()["done"]
    assert json.loads((tmp_path / "results/pretrain.json").read_text())["held_out"] == {}
    assert not (tmp_path / "model/guide").exists()
    made = training(tmp_path, pixel_spec())
    stage = PixelStage(made.setting, build_cache(made.setting, made.tokenizer, None, None)[0])
    stage.kept["snapshots"].copy_(_snapshots(tmp_path))
    written = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    names = [name for name, _ in stage.module.named_parameters()]
    expected = dict(zip(names, stage.ema.weights(8, 0.2), strict=True))
    assert all(torch.equal(value, expected[name]) for name, value in written.items())


def _worker(rank: int, world_size: int, folder: str, features: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    spec = pixel_spec(pixel={"features": features, "dropout": 0.0}, **CHOSEN)
    training(Path(folder), spec, place=Place(rank, world_size, CPU)).run()
    dist.destroy_process_group()


def test_two_workers_have_the_losses_of_one(tmp_path: Path) -> None:
    """Without dropout, which each worker draws for itself."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for workers, folder in enumerate(folders, 1):
        folder.mkdir()
        mp.spawn(_worker, args=(workers, str(folder), True), nprocs=workers)
    one, two = (json.loads((folder / "results/pretrain.json").read_text()) for folder in folders)
    for name in ("clip", "pixel"):
        assert two["stages"][name]["loss"] == pytest.approx(one["stages"][name]["loss"], rel=2e-3), name
    assert two["held_out"]["pixel"]["held"] == pytest.approx(one["held_out"]["pixel"]["held"], rel=2e-3)


def test_dropout_follows_the_step_and_not_the_process() -> None:
    """A step that is run again after a restart drops the same units."""
    losses = []
    for seed in (0, 1):
        stage, _ = _stage(pixel={"dropout": 0.5})
        nn.init.normal_(stage.model.conv_out.weight, generator=torch.Generator().manual_seed(0))
        stage.module.train()
        torch.manual_seed(seed)
        losses.append(float(stage.loss(stage.module, 5).detach()))
    assert losses[0] == losses[1]


def test_views_of_a_latent_unet_and_its_vae(tmp_path: Path) -> None:
    from tests.support.training import tiny_spec

    spec = tiny_spec()
    data = spec.pretrain.model_copy(update={"views": ViewsSpec(probability=0.5), "held_out": 0.25})
    folder = tmp_path / "views"
    assert training(folder, spec.model_copy(update={"pretrain": data})).run()["done"]
    held = json.loads((folder / "results/pretrain.json").read_text())["held_out"]
    assert held["vae"].keys() == {"train", "held"}
    assert held["unet"]["step"][-1] == 8
    assert load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")
