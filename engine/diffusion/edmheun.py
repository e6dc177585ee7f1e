"""Heun's second-order sampler of EDM (arXiv 2206.00364, algorithm 1 without churn), which diffusers has for other noise
schedules only."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EDMEulerScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput


class EDMHeunScheduler(EDMEulerScheduler):
    """Two evaluations a step, but for the last, which goes to no noise by Euler's method: 2 n - 1 of them for n steps.

    The first evaluation of a step moves to the next noise level by its slope, the second moves from where the step
    began by the mean of both slopes (eq. 2 of the paper's algorithm 1). The noise levels are those of
    EDMEulerScheduler.
    """

    order = 2
    sigmas: torch.Tensor
    timesteps: torch.Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: torch.Tensor | list[float] | None = None,
    ) -> None:
        """`timesteps` names each evaluation, 2 n - 1 of them; `num_inference_steps` stays n."""
        super().set_timesteps(num_inference_steps, device, sigmas)
        self.sigmas = torch.cat([self.sigmas[:1], self.sigmas[1:-1].repeat_interleave(2), self.sigmas[-1:]])
        self.timesteps = torch.cat([self.timesteps[:1], self.timesteps[1:].repeat_interleave(2)])
        self._began: tuple[torch.Tensor, torch.Tensor] | None = None

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        **unused: Any,
    ) -> EDMEulerSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One evaluation: to the next noise level, or again there from where the step began."""
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        sample = sample.to(torch.float32)
        clean = self.precondition_outputs(sample, model_output, sigma)
        slope = (sample - clean) / sigma
        if self._began is None:
            moved = sample + (following - sigma) * slope
            self._began = None if following == 0 else (sample, slope)
        else:
            start, first = self._began
            before = self.sigmas[self.step_index - 1]
            moved = start + (sigma - before) * (first + slope) / 2
            self._began = None
        self._step_index += 1
        self.is_scale_input_called = False
        moved = moved.to(model_output.dtype)
        if not return_dict:
            return moved, clean
        return EDMEulerSchedulerOutput(prev_sample=moved, pred_original_sample=clean)
