"""Noising processes: how latents are noised at a time, what the network should predict there, and how errors are
weighed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

Times = torch.Tensor


class Process(Protocol):
    """One noising process over latents (B, C, h, w); `times` (B,) are in the process's own unit, as the network takes
    them."""

    def times(self, count: int, generator: torch.Generator) -> Times:
        """Times to train at, drawn on the CPU."""

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """The latents with noise added."""

    def aim(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """What the network should predict."""

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, times: Times) -> torch.Tensor:
        """The clean latents that a prediction stands for."""

    def weights(self, times: Times, gamma: float) -> torch.Tensor:
        """Weights (B,) of the squared error of a prediction."""

    def clean_weights(self, times: Times, gamma: float) -> torch.Tensor:
        """Weights (B,) of comparisons of clean latents: min(SNR, gamma)."""

    def level(self, times: Times) -> torch.Tensor:
        """How noisy (B,), from 0 (clean) to 1 (noise alone): the share of the process that lies before a time."""


class Diffusion:
    """The variance-preserving process of DDPM (arXiv 2006.11239) in discrete steps, predicting noise or velocity."""

    def __init__(self, alphas_cumprod: torch.Tensor, prediction: str) -> None:
        """`alphas_cumprod` (T,): signal variance of each step; `prediction`: `epsilon` or `v_prediction`."""
        self._alphas, self._prediction = alphas_cumprod, prediction

    @classmethod
    def of(cls, config: Mapping[str, Any], device: torch.device | str = "cpu") -> Diffusion:
        """The process of a diffusers scheduler configuration."""
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(dict(config))
        return cls(scheduler.alphas_cumprod.to(device), config.get("prediction_type", "epsilon"))

    def times(self, count: int, generator: torch.Generator) -> Times:
        """Uniform over the steps, int64."""
        return torch.randint(len(self._alphas), (count,), generator=generator)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """sqrt(a) z + sqrt(1 - a) e."""
        a = self._a(times, latents)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def aim(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """The noise, or the velocity sqrt(a) e - sqrt(1 - a) z (arXiv 2202.00512, appendix D)."""
        if self._prediction == "epsilon":
            return noise
        a = self._a(times, latents)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, times: Times) -> torch.Tensor:
        """(z - sqrt(1-a) e) / sqrt(a) (arXiv 2006.11239, eq. 15), or sqrt(a) z - sqrt(1-a) v (arXiv 2202.00512, D)."""
        a = self._a(times, noisy)
        if self._prediction == "epsilon":
            return (noisy - (1 - a).sqrt() * predicted) / a.sqrt()
        return a.sqrt() * noisy - (1 - a).sqrt() * predicted

    def weights(self, times: Times, gamma: float) -> torch.Tensor:
        """Min-SNR weights (arXiv 2303.09556).

        SNR = a / (1 - a). min(SNR, gamma) weighs the error of the clean sample; expressed as errors of the noise it is
        min(SNR, gamma) / SNR, of the velocity min(SNR, gamma) / (SNR + 1).
        """
        snr = self._snr(times)
        divisor = {"epsilon": snr, "v_prediction": snr + 1}[self._prediction]
        return (snr.clamp(max=gamma) / divisor).float()

    def clean_weights(self, times: Times, gamma: float) -> torch.Tensor:
        """min(SNR, gamma)."""
        return self._snr(times).clamp(max=gamma).float()

    def level(self, times: Times) -> torch.Tensor:
        """t / T."""
        return times.float() / len(self._alphas)

    def _snr(self, times: Times) -> torch.Tensor:
        a = self._alphas[times].double()
        return a / (1 - a)

    def _a(self, times: Times, like: torch.Tensor) -> torch.Tensor:
        return self._alphas[times].to(like)[(...,) + (None,) * (like.ndim - 1)]


class Flow:
    """Rectified flow (arXiv 2403.03206): a straight line from the image to the noise, predicting the velocity e - z.

    Times are noise levels s in (0, 1) times 1,000, float32, which is what the transformers of this kind take.
    """

    UNIT = 1000.0

    def __init__(self, shift: float = 1.0, mean: float = 0.0, std: float = 1.0) -> None:
        """`shift` moves drawn times towards the noise, as at sampling (arXiv 2403.03206, eq. 23); `mean`, `std` of
        their logit."""
        self._shift, self._mean, self._std = shift, mean, std

    @classmethod
    def of(cls, config: Mapping[str, Any], mean: float = 0.0, std: float = 1.0) -> Flow:
        """The process of a flow-matching scheduler's configuration."""
        return cls(float(config.get("shift", 1.0)), mean, std)

    def times(self, count: int, generator: torch.Generator) -> Times:
        """Logit-normal (arXiv 2403.03206, section 3.1), shifted."""
        s = torch.sigmoid(self._mean + self._std * torch.randn(count, generator=generator))
        return self.UNIT * self._shift * s / (1 + (self._shift - 1) * s)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """(1 - s) z + s e."""
        s = self._s(times, latents)
        return (1 - s) * latents + s * noise

    def aim(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """The velocity e - z."""
        return noise - latents

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, times: Times) -> torch.Tensor:
        """z = z_s - s v."""
        return noisy - self._s(times, noisy) * predicted

    def weights(self, times: Times, gamma: float) -> torch.Tensor:
        """One for all: the drawn times are the weighting."""
        return torch.ones(len(times), device=times.device)

    def clean_weights(self, times: Times, gamma: float) -> torch.Tensor:
        """min(SNR, gamma) with SNR = ((1 - s) / s)^2."""
        s = times.double() / self.UNIT
        return ((1 - s) / s).square().clamp(max=gamma).float()

    def level(self, times: Times) -> torch.Tensor:
        """The noise level s."""
        return times.float() / self.UNIT

    def _s(self, times: Times, like: torch.Tensor) -> torch.Tensor:
        return (times / self.UNIT).to(like)[(...,) + (None,) * (like.ndim - 1)]


class Edm:
    """EDM (arXiv 2206.00364): noise of standard deviation s is added, and the network F predicts what its
    preconditioning leaves.

    D(x; s) = c_skip x + c_out F(c_in x; c_noise) is the clean image, with c_skip = d^2 / (s^2 + d^2), c_out = s d /
    sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2) and c_noise = ln(s) / 4 (table 1); d is the data's standard deviation.
    Times are c_noise, float32.
    """

    MEAN, STD = -1.2, 1.2  # of ln(s) in training (table 1)

    def __init__(self, sigma_data: float = 0.5, mean: float = MEAN, std: float = STD, sign: float = 1.0) -> None:
        """`sign` -1 turns c_out round, which diffusers calls velocity prediction."""
        self._d, self._mean, self._std, self._sign = sigma_data, mean, std, sign

    @classmethod
    def of(cls, config: Mapping[str, Any], mean: float = MEAN, std: float = STD) -> Edm:
        """The process of an EDM scheduler's configuration."""
        sign = -1.0 if config.get("prediction_type", "epsilon") == "v_prediction" else 1.0
        return cls(float(config.get("sigma_data", 0.5)), mean, std, sign)

    def times(self, count: int, generator: torch.Generator) -> Times:
        """ln(s) is normal."""
        return (self._mean + self._std * torch.randn(count, generator=generator)) / 4

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """z + s e."""
        return latents + self._s(times, latents) * noise

    def scaled(self, noisy: torch.Tensor, times: Times) -> torch.Tensor:
        """c_in x, what the network is given."""
        return noisy / self._norm(self._s(times, noisy))

    def aim(self, latents: torch.Tensor, noise: torch.Tensor, times: Times) -> torch.Tensor:
        """(z - c_skip x) / c_out = (s z - d^2 e) / (d sqrt(s^2 + d^2))."""
        s = self._s(times, latents)
        return self._sign * (s * latents - self._d**2 * noise) / (self._d * self._norm(s))

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, times: Times) -> torch.Tensor:
        """c_skip x + c_out F."""
        s = self._s(times, noisy)
        skip = self._d**2 / (s**2 + self._d**2)
        return skip * noisy + self._sign * s * self._d / self._norm(s) * predicted

    def weights(self, times: Times, gamma: float) -> torch.Tensor:
        """One: the paper's weight (s^2 + d^2) / (s d)^2 of D's error is 1 / c_out^2 (eq. 144). `gamma` is not used."""
        return torch.ones_like(times)

    def clean_weights(self, times: Times, gamma: float) -> torch.Tensor:
        """min(d^2 / s^2, gamma)."""
        return (self._d**2 / (8 * times).exp()).clamp(max=gamma)

    def level(self, times: Times) -> torch.Tensor:
        """The share of training's noise levels that lie below."""
        return torch.special.ndtr((4 * times - self._mean) / self._std)

    def _norm(self, s: torch.Tensor) -> torch.Tensor:
        return (s**2 + self._d**2).sqrt()

    @staticmethod
    def _s(times: Times, like: torch.Tensor) -> torch.Tensor:
        return (4 * times).exp().to(like)[(...,) + (None,) * (like.ndim - 1)]
