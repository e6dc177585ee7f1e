"""A classifier's training as a stage of the step loop: the loss of a step is a pure function of weights and step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import ConfigError
from engine.seeds import derive
from engine.spec.classifier import TrainSpec
from engine.training.classifier.augment import mix, normalised
from engine.training.classifier.loader import Loader
from engine.training.ema import Ema
from engine.training.schedule import learning_rate
from engine.training.setup import Place

BEST = 4  # of the best validation so far: step, accuracy, negative log-likelihood, whether there is one


class ClassifierStage:
    """Cross-entropy with label smoothing, mixup and CutMix over batches of a loader.

    `kept["best"]` (4,) float64 is the best validation so far, `kept["curve"]` (N, 3) float64 each validation: step,
    accuracy, NLL.
    """

    accumulate = 1

    def __init__(
        self,
        name: str,
        spec: TrainSpec,
        seed: int,
        images: int,
        classes: int,
        model: nn.Module,
        loader: Loader,
        place: Place,
    ) -> None:
        """`images`: size of the real training split, which sets the length where the recipe counts epochs."""
        self.name, self.spec, self.module = name, spec, model
        self.steps, self.weight_decay = spec.total_steps(images), spec.weight_decay
        self.clip_norm = spec.clip_norm if spec.clip_norm is not None else float("inf")
        self.ema: Ema | None = Ema([p for p in model.parameters() if p.requires_grad], spec.ema) if spec.ema else None
        self.validations = validations(spec, self.steps)
        self.kept = {
            "best": torch.zeros(BEST, dtype=torch.float64),
            "curve": torch.zeros(len(self.validations), 3, dtype=torch.float64),
        }
        self.scaler: torch.amp.GradScaler | None = None
        if spec.dtype == "float16":
            if place.device.type != "cuda":
                raise ConfigError("train.dtype", "float16 needs a CUDA device", "use bfloat16 or float32")
            self.scaler = torch.amp.GradScaler(place.device.type)
        self._warmup = spec.in_steps(spec.warmup, images)
        self._milestones = [spec.in_steps(m, images) for m in spec.milestones]
        self._seed, self._classes, self._loader, self._place = seed, classes, loader, place

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum over all weights, or AdamW without decay of norms and biases (timm's grouping)."""
        spec = self.spec
        if spec.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=spec.lr,
                momentum=spec.momentum,
                nesterov=spec.momentum > 0,
                weight_decay=spec.weight_decay,
            )
        import timm.optim

        grouping: Any = timm.optim  # its names are not declared as exported
        groups: Any = grouping.param_groups_weight_decay(self.module, spec.weight_decay)
        return torch.optim.AdamW(groups, lr=spec.lr, fused=True)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        spec = self.spec
        if spec.schedule != "milestones":
            return learning_rate(spec.schedule, step, self.steps, spec.lr, self._warmup)
        passed = sum(step >= milestone for milestone in self._milestones)
        return learning_rate("constant", step, self.steps, spec.lr, self._warmup) * spec.milestone_factor**passed

    def loss(self, module: nn.Module, step: int) -> Tensor:
        """The loss of this rank's part of the global batch of a step."""
        device, spec = self._place.device, self.spec
        pixels, labels = self._loader.batch(step)
        images, labels = normalised(pixels.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
        mixed, targets = mix(spec, self._seed, step), labels
        if mixed is not None:
            side = images.shape[-1]
            images, targets = mixed.images(images), mixed.targets(labels, self._classes, side)
        torch.manual_seed(derive(self._seed, "dropout", step, self._place.rank))
        with self._autocast():
            logits = module(images)
        return functional.cross_entropy(logits.float(), targets, label_smoothing=spec.label_smoothing)

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = getattr(torch, self.spec.dtype)
        return torch.autocast(self._place.device.type, dtype=dtype, enabled=dtype != torch.float32)


def validations(spec: TrainSpec, steps: int) -> list[int]:
    """After which steps the validation split is looked at, where there is one: ten times, or as asked; always after the
    last."""
    every = spec.validate_every or max(1, steps // 10)
    return [*range(every, steps, every), steps]
