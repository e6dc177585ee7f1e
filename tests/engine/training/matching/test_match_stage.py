"""The loss of a global batch: the released formula, the same on 1, 2 and 4 workers, cached or live, and its history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import StableDiffusionPipeline
from torch.nn.parallel import DistributedDataParallel

from engine.training.matching.matching_stage import BUCKETS, PHASES
from engine.training.setup import Place
from tests.support.matching import Parts, match_spec, run_workers
from tests.support.outputs import Output
from tests.support.training import CPU

MMD = ("none", "residual", "residual_per_class", "kernel_latent", "kernel_feature")


def _stir(module: torch.nn.Module) -> None:
    """The up matrices of a new LoRA are zero, which would hide the down matrices' gradients."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def _gradients(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad and p.grad is not None])


def test_the_loss_is_the_released_one_at_its_batch_size(ready: Output, tmp_path: Path) -> None:
    spec = match_spec(ready.spec, mmd="residual", mmd_weight=0.003 * 8 * 8, batch=8)
    found = Parts(ready, spec).matching(tmp_path)
    stage = found.stage
    _stir(stage.module)
    noisy, told, batch = stage._draw(5)
    with torch.no_grad():
        predicted = (
            found.pipeline.unet(noisy, batch.times, encoder_hidden_states=told["states"]).sample.double().numpy()
        )
        loss = float(stage.loss(stage.module, 5))
    a = found.pipeline.scheduler.alphas_cumprod[batch.times].double().numpy()
    snr = a / (1 - a)
    weights = np.minimum(snr, 5.0) / snr
    noise = batch.aim.double().numpy()
    denoising = np.mean([weights[i] * ((predicted[i] - noise[i]) ** 2).mean() for i in range(8)])
    total = sum(weights[i] * predicted[i] for i in range(8)) - sum(weights[i] * noise[i] for i in range(8))
    assert loss == pytest.approx(denoising + 0.003 * (total**2).mean(), rel=1e-5)
    assert (total**2).mean() > 0.1


def _worker(rank: int, world: int, folder: str, parts: list[Parts]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    out = {}
    for one in parts:
        stage = one.matching(Path(folder), place=Place(rank, world, CPU)).stage
        _stir(stage.module)
        module = DistributedDataParallel(stage.module)
        loss = stage.loss(module, 3)
        loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total)
        assert one.spec.match is not None
        out[one.spec.match.mmd] = (float(total) / world, _gradients(stage.module), stage.kept)
    if rank == 0:
        torch.save(out, Path(folder) / f"world-{world}.pt")
    dist.destroy_process_group()


def test_every_term_and_its_gradient_are_those_of_one_worker(ready: Output, tmp_path: Path) -> None:
    parts = [Parts(ready, match_spec(ready.spec, mmd=mmd, samples=0)) for mmd in MMD]
    alone: dict[str, Any] = {}
    for one, mmd in zip(parts, MMD, strict=True):
        stage = one.matching(tmp_path).stage
        _stir(stage.module)
        loss = stage.loss(stage.module, 3)
        loss.backward()
        alone[mmd] = (float(loss.detach()), _gradients(stage.module), stage.kept)
    for world in (2, 4):
        run_workers(_worker, (world, str(tmp_path), parts), world)
        shared = torch.load(tmp_path / f"world-{world}.pt")
        for mmd in MMD:
            assert shared[mmd][0] == pytest.approx(alone[mmd][0], rel=1e-5), (world, mmd)
            torch.testing.assert_close(shared[mmd][1], alone[mmd][1], rtol=1e-4, atol=1e-6, msg=f"{world} {mmd}")
            for name, kept in alone[mmd][2].items():
                torch.testing.assert_close(shared[mmd][2][name], kept, rtol=1e-4, atol=1e-6)
    assert len({round(loss, 6) for loss, _, _ in alone.values()}) == len(MMD)


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_cached_inputs_give_the_losses_of_live_ones_to_the_bit(ready: Output, tmp_path: Path, augment: str) -> None:
    parts = Parts(ready, match_spec(ready.spec, mmd="kernel_latent", augment=augment, drop_condition=0.3))
    live, cached = parts.matching(tmp_path).stage, parts.matching(tmp_path, inputs=parts.cache()).stage
    for step in range(4):
        assert float(live.loss(live.module, step).detach()) == float(cached.loss(cached.module, step).detach())


def test_what_the_network_is_told_is_the_stock_embedding_with_the_feature_in_it(ready: Output, tmp_path: Path) -> None:
    parts = Parts(ready, match_spec(ready.spec, drop_condition=0.0, drop_image=0.0))
    rows, off = torch.tensor([4, 9, 30]), torch.zeros(3, dtype=torch.bool)
    told = parts.matching(tmp_path).inputs.condition(torch.zeros(3, dtype=torch.int64), rows, off, off)["states"]
    stock: Any = StableDiffusionPipeline.from_pretrained(ready.checkpoint.path, local_files_only=True)
    for number, row in enumerate(rows.tolist()):
        with torch.no_grad():
            expected, _ = stock.encode_prompt(ready.conditions.prompts[row], "cpu", 1, False)
        expected[0, -1] = torch.from_numpy(ready.conditions.features[row])
        torch.testing.assert_close(told[number], expected[0], rtol=1e-6, atol=1e-6)


def test_errors_are_kept_by_phase_and_noise_level(ready: Output, tmp_path: Path) -> None:
    stage = Parts(ready, match_spec(ready.spec, steps=PHASES, batch=40, mmd="none")).matching(tmp_path).stage
    for step in range(PHASES):
        stage.loss(stage.module, step)
    assert stage.kept["errors"][:, :, 1].sum(1).tolist() == [40.0] * PHASES
    assert stage.kept["terms"][:, 2].tolist() == [1.0] * PHASES
    levels = stage.by_level()
    assert len(levels) == BUCKETS
    # a network that predicts little errs by about the noise's variance, wherever it is asked
    assert all(0.3 < level < 3 for level in levels if level is not None)
