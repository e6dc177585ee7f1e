"""The step loop that all trainings share: optimiser, average, checkpoints, time limit, and a stop at the first loss
that is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.diffusion import fast
from engine.errors import DataError
from engine.training.ema import Ema
from engine.training.setup import Place

LOOK_EVERY_S = 1.0
MAX_STRIDE = 100


class State(TypedDict):
    """All that a training goes on from, `weights` without what is frozen."""

    step: int
    seconds: float
    losses: torch.Tensor
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    average: list[torch.Tensor]
    kept: dict[str, torch.Tensor]
    scaler: NotRequired[dict[str, object]]


class Stage(Protocol):
    """What is trained, with what settings, and a loss that is a pure function of the step."""

    name: str
    steps: int
    weight_decay: float
    clip_norm: float
    accumulate: int
    kept: dict[str, torch.Tensor]  # its own history, which travels in checkpoints

    @property
    def module(self) -> nn.Module:
        """What is trained: its parameters that require a gradient."""

    @property
    def ema(self) -> Ema | None:
        """The average of these parameters that is the stage's result, if there is one."""

    def lr(self, step: int) -> float:
        """The learning rate of a step."""

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """The loss of this rank's part of global (micro-)batch `step`; its mean over the ranks is that of the whole
        batch."""


@runtime_checkable
class OwnOptimizer(Protocol):
    """What a stage has besides where it brings its optimiser: AdamW without loss scaling is what others get."""

    scaler: torch.amp.GradScaler | None  # scales the loss where gradients are float16

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser of these parameters; the loop sets its learning rate."""


class Loop:
    """Trains one stage from `start` on; its whole state goes into and comes out of checkpoints."""

    def __init__(self, stage: Stage, place: Place, state: State | None = None, *, compiled: bool = False) -> None:
        """`state` is what `Loop.state` gave at a checkpoint of this stage, None at its start.

        `compiled`: forward and backward pass go through `torch.compile`, which changes rounding alone.
        """
        self.stage, self.place, self._compiled = stage, place, compiled
        self._parameters = [parameter for parameter in stage.module.parameters() if parameter.requires_grad]
        own = stage if isinstance(stage, OwnOptimizer) else None
        self._scaler = own.scaler if own else None
        self.optimizer = own.optimizer(self._parameters) if own else self._adamw()
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self._pending: list[torch.Tensor] = []
        if state is not None:
            self._restore(state)

    def _adamw(self) -> torch.optim.Optimizer:
        stage = self.stage
        return torch.optim.AdamW(self._parameters, lr=stage.lr(0), weight_decay=stage.weight_decay, fused=True)

    def state(self) -> State:
        """Everything that the next step depends on, and the history; CPU or device tensors, numbers, text."""
        state: State = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": torch.tensor(self.losses),
            "weights": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.stage.ema.average if self.stage.ema else [],
            "kept": self.stage.kept,
        }
        if self._scaler:
            state["scaler"] = self._scaler.state_dict()
        return state

    def _weights(self) -> dict[str, torch.Tensor]:
        """The module's state without what is frozen."""
        frozen = {name for name, parameter in self.stage.module.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.stage.module.state_dict().items() if name not in frozen}

    def _restore(self, state: State) -> None:
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"].tolist()
        assert state["weights"].keys() == self._weights().keys()
        self.stage.module.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler:
            self._scaler.load_state_dict(state["scaler"])
        if self.stage.ema:
            for average, saved in zip(self.stage.ema.average, state["average"], strict=True):
                average.copy_(saved)
        for name, values in self.stage.kept.items():
            values.copy_(state["kept"][name])

    def run(
        self,
        *,
        checkpoint_every: int,
        save: Callable[[], None],
        out_of_time: Callable[[], bool],
        tell: Callable[[int, float], None],
        look: Callable[[int], bool] = lambda step: False,
    ) -> bool:
        """Train to the stage's end (True) or until the time is up (False); `save` is called at both and every so many
        steps.

        Raises DataError at a loss or gradient that is not finite, with the checkpoint before it left as the newest.
        `out_of_time` counts on rank 0; the others follow it. `tell` comes about every second, at checkpoints, and after
        steps that
        `look` marks (the same on all ranks).
        """
        module = self._wrapped().train()
        seen, next_look, begun = self.step, self.step + 1, time.monotonic()
        while self.step < self.stage.steps:
            self._pending.append(self._tried_step(module))
            self.step += 1
            whole = self.step == self.stage.steps or self.step % checkpoint_every == 0
            if self.step < next_look and not whole and not look(self.step):
                continue
            self._check()
            tell(self.step, self.losses[-1])
            spent, begun = time.monotonic() - begun, time.monotonic()
            self.seconds += spent
            stop, stride = self._agree(out_of_time(), spent / (self.step - seen))
            seen, next_look = self.step, self.step + stride
            if whole or stop:
                save()
            if stop and self.step < self.stage.steps:
                return False
        return True

    def _wrapped(self) -> nn.Module:
        module: Any = self.stage.module
        if self._compiled:
            fast.keep_compiled()
            torch.compiler.reset()  # else the compiler gives up silently at the ninth network of one process
            module = torch.compile(module, dynamic=False)
        return DistributedDataParallel(module) if self.place.world_size > 1 else module

    def _tried_step(self, module: nn.Module) -> torch.Tensor:
        try:
            return self._train_step(module)
        except Exception as error:
            fast.raise_if_not_compiled(error, "resources.compile_training", "set it to false")
            raise

    def _train_step(self, module: nn.Module) -> torch.Tensor:
        """One update; returns (2,): the loss of this rank's part, the norm of the whole batch's gradient."""
        stage = self.stage
        for group in self.optimizer.param_groups:
            group["lr"] = stage.lr(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        for part in range(stage.accumulate):
            loss = stage.loss(module, self.step * stage.accumulate + part) / stage.accumulate
            (self._scaler.scale(loss) if self._scaler else loss).backward()
            total += loss.detach()
        norm = self._update()
        if stage.ema:
            stage.ema.update(self._parameters, self.step)
        return torch.stack([total, norm])

    def _update(self) -> torch.Tensor:
        """Clip and step; returns the norm of the gradient, 0 where the loss scale was too high and the step is left
        out."""
        if not self._scaler:
            norm = nn.utils.clip_grad_norm_(self._parameters, self.stage.clip_norm)
            self.optimizer.step()
            return norm
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.stage.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return torch.where(norm.isfinite(), norm, torch.zeros_like(norm))

    def _check(self) -> None:
        """Take in the losses since the last look, averaged over the ranks; DataError when one is not finite."""
        seen = torch.stack(self._pending)
        if self.place.world_size > 1:
            dist.all_reduce(seen)
            seen /= self.place.world_size
        finite = seen.isfinite().all(dim=1).tolist()
        if not all(finite):
            step = self.step - len(finite) + finite.index(False)
            raise DataError(
                f"{self.stage.name}, step {step}",
                "the loss or its gradient is not finite",
                "lower its learning rate; the checkpoint before that step is kept",
            )
        self.losses += seen[:, 0].tolist()
        self._pending = []

    def _agree(self, stop: bool, step_s: float) -> tuple[bool, int]:
        """Rank 0's word on whether to stop now, and how many steps to go until the next look, about a second's
        worth."""
        stride = min(MAX_STRIDE, max(1, round(LOOK_EVERY_S / max(step_s, 1e-6))))
        if self.place.world_size == 1:
            return stop, stride
        word = torch.tensor([int(stop), stride], device=self.place.device)
        dist.broadcast(word, src=0)
        return bool(word[0]), int(word[1])
