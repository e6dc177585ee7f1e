"""The step loop with a compiled network: the same losses, weights of the same names, one line where the compiler
fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import ClusterError
from engine.training.ema import Ema
from engine.training.loop import Loop
from engine.training.setup import Place
from tests.support.tiers import slow
from tests.support.training import CPU

ONE = Place(0, 1, CPU)


class Regression:
    """A small network that learns a fixed linear map; the batch is a function of the step."""

    name = "regression"
    steps, weight_decay, clip_norm, accumulate = 12, 0.0, 1.0, 1
    ema: Ema | None = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: dict[str, torch.Tensor] = {}

    def lr(self, step: int) -> float:
        return 1e-2

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (module(inputs) - inputs.cumsum(1)).square().mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


def trained(compiled: bool, halves: tuple[int, ...] = (12,)) -> Loop:
    state = None
    for steps in halves:
        stage = Regression(network())
        stage.steps = steps
        loop = Loop(stage, ONE, state, compiled=compiled)
        loop.run(checkpoint_every=100, save=lambda: None, out_of_time=lambda: False, tell=lambda step, loss: None)
        state = loop.state()
        compiled = not compiled
    return loop


class Uncompilable(nn.Module):
    """Fails as the compiler does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.InternalTorchDynamoError("no C++ compiler\nand so on")


def test_a_compiler_that_fails_is_one_line() -> None:
    loop = Loop(Regression(Uncompilable()), ONE)
    with pytest.raises(ClusterError, match=r"resources.compile_training: .*no C\+\+ compiler; set it to false"):
        loop.run(checkpoint_every=9, save=lambda: None, out_of_time=lambda: False, tell=lambda step, loss: None)


@slow
def test_a_compiled_network_learns_the_same_and_goes_on_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.utils.counters.clear()
    plain, compiled, mixed = trained(False), trained(True), trained(True, (5, 12))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert any((tmp_path / "inductor").rglob("*"))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert mixed.losses == pytest.approx(plain.losses, rel=1e-4)
    assert compiled.state()["weights"].keys() == plain.state()["weights"].keys()


@slow
def test_the_ninth_network_of_a_process_is_compiled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path))
    for _ in range(10):
        torch._dynamo.utils.counters.clear()
        trained(True)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
