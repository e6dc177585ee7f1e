"""The fine-tune as a stage of the step loop: denoising loss and MMD term of a global batch, whatever the number of
workers."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from engine.diffusion.families.family import Family
from engine.diffusion.process import Process
from engine.spec.training import MatchSpec
from engine.training import draws
from engine.training.ema import Ema
from engine.training.gather import gather
from engine.training.latent_cache import Inputs
from engine.training.matching.adapter import trained
from engine.training.matching.terms import TERMS, Batch, Features, Tools
from engine.training.schedule import learning_rate
from engine.training.setup import Place

PHASES = 20
BUCKETS = 5


class MatchStage:
    """L = mean over the batch of min-SNR weighted squared errors + weight x MMD (arXiv 2310.10402, eq. 7 in its
    released form).

    `kept["errors"]` (PHASES, BUCKETS, 2) sums squared errors, not weighted, and counts them by phase of the training
    and noise level; `kept["terms"]` (PHASES, 3) sums both terms of the loss and counts the batches.
    """

    name = "match"

    def __init__(
        self,
        match: MatchSpec,
        seed: int,
        place: Place,
        family: Family,
        denoiser: nn.Module,
        inputs: Inputs,
        process: Process,
        features: Features | None = None,
    ) -> None:
        self.match, self.module = match, denoiser
        self.steps, self.weight_decay, self.clip_norm = match.steps, match.weight_decay, match.clip_norm
        self.accumulate = match.accumulate
        self.ema: Ema | None = Ema(trained(denoiser), match.ema) if match.ema else None
        shapes = {"errors": (PHASES, BUCKETS, 2), "terms": (PHASES, 3)}
        self.kept = {name: torch.zeros(shape, device=place.device) for name, shape in shapes.items()}
        self._seed, self._place, self._family, self._inputs = seed, place, family, inputs
        self._tools = Tools(process, match.snr_gamma, features)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.match.schedule, step, self.steps, self.match.lr, self.match.warmup)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """The loss of this rank's part of global micro-batch `step`; the MMD term is that of the whole batch on every
        rank."""
        match, process = self.match, self._tools.process
        noisy, told, batch = self._draw(step)
        with self._autocast():
            predicted = self._family.predict(module, noisy, batch.times, told).float()
        errors = (predicted - batch.aim).square().flatten(1).mean(1)
        denoising = (process.weights(batch.times, match.snr_gamma) * errors).mean()
        mmd = torch.zeros((), device=denoising.device)
        if match.mmd != "none":
            mmd = TERMS[match.mmd](self._whole(batch, noisy, predicted), self._tools)
        self._keep(step, errors.detach(), batch.times, mmd.detach())
        return denoising + match.mmd_weight * mmd

    def _draw(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], Batch]:
        """This rank's part of the global batch of a step: noisy latents, what the network is told, the rest."""
        match, inputs, process = self.match, self._inputs, self._tools.process
        device, part = self._place.device, self._place.part(match.batch)
        rows = self._rows(step)[part]
        generator = draws.generator(self._seed, self.name, step)
        noise = torch.randn(match.batch, *inputs.latent_shape, generator=generator)[part].to(device)
        times = process.times(match.batch, generator)[part].to(device)
        variants = torch.randint(inputs.variants, (match.batch,), generator=generator)[part]
        dropped = torch.rand(2, match.batch, generator=generator)[:, part]
        told = inputs.condition(variants, rows, dropped[0] < match.drop_condition, dropped[1] < match.drop_image)
        latents = inputs.draw(variants, rows).to(device)
        noisy, aim = process.noisy(latents, noise, times), process.aim(latents, noise, times)
        on_device = {name: values.to(device) for name, values in told.items()}
        return noisy, on_device, Batch(latents, noisy, times, aim, aim, inputs.labels[rows].to(device))

    def _rows(self, step: int) -> torch.Tensor:
        """Rows of the global batch; in pairs of one class where the term compares classes by themselves."""
        labels = self._inputs.labels
        if self.match.mmd == "residual_per_class":
            return draws.class_batch_indices(self._seed, self.name, step, self.match.batch, labels)
        return draws.batch_indices(self._seed, self.name, step, self.match.batch, len(labels))

    def _whole(self, batch: Batch, noisy: torch.Tensor, predicted: torch.Tensor) -> Batch:
        """The batch of all ranks, in rank order."""
        parts = (batch.latents, noisy, batch.times, batch.aim, predicted, batch.labels)
        return Batch(*(gather(part, self._place) for part in parts))

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = getattr(torch, self.match.dtype)
        return torch.autocast(self._place.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _keep(self, step: int, errors: torch.Tensor, times: torch.Tensor, mmd: torch.Tensor) -> None:
        """Add a batch to the history, without waiting for the device."""
        process, phase = self._tools.process, step * PHASES // (self.steps * self.accumulate)
        errors, times = gather(errors, self._place), gather(times, self._place)
        levels = (process.level(times) * BUCKETS).long().clamp(0, BUCKETS - 1)
        counted = torch.stack([errors, torch.ones_like(errors)], 1)
        self.kept["errors"][phase].index_add_(0, levels, counted)
        denoising = (process.weights(times, self.match.snr_gamma) * errors).mean()
        self.kept["terms"][phase] += torch.stack([denoising, mmd, torch.ones_like(mmd)])

    def by_level(self) -> list[float | None]:
        """Mean squared error of the newest phase at each noise level, from the clean end to the noisy one; None where
        unseen."""
        seen = (self.kept["terms"][:, 2] > 0).nonzero()
        if not len(seen):
            return [None] * BUCKETS
        return [float(total / count) if count else None for total, count in self.kept["errors"][int(seen[-1])]]
