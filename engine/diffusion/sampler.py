"""Draws batches of images from a stock diffusers pipeline, one random generator a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor

from engine.diffusion import families, fast, schedulers, steps
from engine.diffusion.families.family import Condition, Family, from_latents, tell
from engine.errors import ClusterError, ConfigError, DataError, MimeoError
from engine.spec.recipe import FastSpec, GenerateSpec

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Request:
    """One sample to draw.

    `token`: (D,) float32 CLIP image feature or None; `init_latents`: (C, h, w) float32 scaled VAE latent, read when
    strength is below 1; `label`: the number of the class, read where the generator knows classes only.
    """

    prompt: str
    seed: int
    token: np.ndarray | None = None
    init_latents: np.ndarray | None = None
    label: int = 0


@dataclass(frozen=True)
class Drawn:
    """A picture, (H, W, 3) uint8, or the reason why there is none."""

    pixels: np.ndarray | None
    reason: str | None = None


class OutOfMemory(Exception):
    """A batch of `images` that the device's memory does not hold."""

    def __init__(self, images: int, message: str) -> None:
        super().__init__(message)
        self.images = images


class _Arriving:
    """A batch of pixels (N, H, W, 3) uint8 and flags (2, N) on their way from the device; on a CPU they are there."""

    def __init__(self, pixels: torch.Tensor, flags: torch.Tensor) -> None:
        self._arrived = torch.cuda.Event() if pixels.is_cuda else None
        self._pixels, self._flags = _to_host(pixels), _to_host(flags)
        if self._arrived is not None:
            self._arrived.record()

    def drawn(self, row: int) -> Drawn:
        """One picture, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        finite, good = self._flags[:, row].tolist()
        if not finite:
            return Drawn(None, "non_finite_latents")
        return Drawn(self._pixels[row].numpy()) if good else Drawn(None, "non_finite_pixels")


class Sampler:
    """Turns requests into pictures with the pipeline's own `__call__`; takes the pipeline over.

    A sample's random numbers come from its own CPU generator, its text is encoded alone: batch size and neighbours
    change nothing but the last bits of the arithmetic. `how` changes the models' layout for good.
    """

    def __init__(self, pipeline: Any, generate: GenerateSpec, how: FastSpec | None = None) -> None:
        self._family, config = families.of(pipeline), pipeline.scheduler.config
        schedulers.check_kind(generate.scheduler, self._family.samplers, self._family.name)
        schedulers.check_steps(
            generate.scheduler,
            config,
            generate.num_inference_steps,
            generate.strength,
            counts_steps=self._family.counts_steps,
            kind=self._family.samplers,
        )
        self._generate = generate
        self._from_image = generate.strength < 1
        scheduler = schedulers.make(generate.scheduler, config, self._family.samplers)
        self.pipeline = _rebuild(self._family, pipeline, scheduler, self._from_image)
        self._vae, self._denoiser = self.pipeline.vae, getattr(self.pipeline, self._family.denoiser)
        taken = self._denoiser.config
        self._latent_shape = (taken.in_channels, taken.sample_size, taken.sample_size)
        self._encoder = self._family.encoder(self.pipeline)
        self._limit: int | None = None
        self._padded = 0  # images of every batch, the last of a short one repeated; 0: batches as they come
        self._how = how or FastSpec(channels_last="off")
        self._ahead = self._vae.device.type == "cuda"
        self._side = self._latent_shape[-1] * _scale(self._vae)
        self._vae_batch = fast.vae_batch(self._how, self._vae.device.type, self._side)
        fast.prepare(self.pipeline, self._denoiser, self._how)

    def expect(self, batch_size: int) -> None:
        """Compile the denoiser, if that is asked for, for batches of this size; shorter ones are filled up to it."""
        if self._how.compile != "off":
            fast.compile_denoiser(self._denoiser, self._how.compile, by_block=self._generate.cache_interval > 1)
            self._padded = batch_size

    def fits(self, images: int) -> bool:
        """Whether the device's memory holds a batch of `images`, tried with as few steps as the sampler can do."""
        latents = np.zeros(self._latent_shape, np.float32) if self._from_image else None
        try:
            with torch.inference_mode():
                self._batch([Request("", 0, init_latents=latents)] * images, trial=True)
            return True
        except Exception as error:
            try:
                _raise_if_out_of_memory(error, images)
            except OutOfMemory:
                return False
            raise

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Drawn]]:
        """What `draw` gives for each batch. On CUDA the next batch is begun before one is handed over.

        So the copy of its pixels to the host, and whatever the caller does with them, run beside the next batch.
        """
        if not self._ahead:
            yield from map(self.draw, batches)
            return
        begun: list[Callable[[], Drawn]] | None = None
        for requests in batches:
            following = self.begin(requests)
            if begun is not None:
                yield [row() for row in begun]
            begun = following
        if begun is not None:
            yield [row() for row in begun]

    def draw(self, requests: Sequence[Request]) -> list[Drawn]:
        """One batch: a result for each request, in order.

        Non-finite latents or pixels and exceptions are reasons, found for each sample by itself. A batch that does not
        fit in memory is halved, and later ones are drawn at the size that fitted; ClusterError where a single image
        does not fit. Faults of the device itself are raised.
        """
        return [row() for row in self.begin(requests)]

    def begin(self, requests: Sequence[Request]) -> list[Callable[[], Drawn]]:
        """`draw`, but on CUDA without waiting for the results: each is had by a call."""
        with torch.inference_mode():
            return self._in_parts(list(requests), self._bisect)

    def encode_latents(self, pixels: np.ndarray) -> np.ndarray:
        """Scaled VAE latents, (N, C, h, w) float32, the mean of the posterior of `pixels` (N, H, W, 3) uint8."""
        with torch.inference_mode():
            parts = self._in_parts(list(pixels), lambda part: list(self._encode(np.stack(part))))
        return np.stack(parts)

    def _in_parts(self, items: list[T], run: Callable[[list[T]], list[R]]) -> list[R]:
        results: list[R] = []
        while len(results) < len(items):
            part = items[len(results) :][: self._limit]
            failure = None
            try:
                results += run(part)
            except OutOfMemory as error:
                failure = error.images, str(error)
            if failure is not None:  # outside of the handler, whose traceback holds the batch's tensors
                self._limit = self._smaller(*failure)
                self._padded = min(self._padded, self._limit)
        return results

    def _smaller(self, images: int, failure: str) -> int:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if images == 1:
            raise ClusterError("device memory", failure, "set model.dtype to bfloat16 or draw smaller images")
        return images // 2

    def _bisect(self, requests: list[Request]) -> list[Callable[[], Drawn]]:
        try:
            return self._batch(requests)
        except (MimeoError, OutOfMemory):
            raise
        except Exception as error:
            _raise_if_out_of_memory(error, max(len(requests), self._padded))
            _raise_if_device_fault(error)
            fast.raise_if_not_compiled(error)
            if len(requests) == 1:
                return [partial(Drawn, None, f"error: {_one_line(error)}")]
        middle = len(requests) // 2
        return self._bisect(requests[:middle]) + self._bisect(requests[middle:])

    def _batch(self, requests: list[Request], *, trial: bool = False) -> list[Callable[[], Drawn]]:
        wanted = len(requests)
        requests = requests + requests[-1:] * (self._padded - wanted)
        condition = tell(
            self._encoder, [r.prompt for r in requests], [r.label for r in requests], [r.token for r in requests]
        )
        guided = self._generate.guidance_scale > 1 and self._generate.guidance == "cfg"
        without = self._unconditional(requests) if guided else None
        side = None if self._from_image else self._side
        arguments: dict[str, object] = {
            **self._family.ask(condition, without, side),
            "guidance_scale": self._generate.guidance_scale,
            "num_inference_steps": self._fewest_steps() if trial else self._generate.num_inference_steps,
            "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            "output_type": "latent",
        }
        if self._from_image:
            initial = self._initial(requests).to(self._vae.device, self._vae.dtype)
            arguments |= {"image": initial, "strength": self._generate.strength}
        with self._approximated(without is not None and not trial), fast.attention(self._how.attention):
            arriving = self._decode(self.pipeline(**arguments).images)
        return [partial(arriving.drawn, row) for row in range(wanted)]

    @contextmanager
    def _approximated(self, guided: bool) -> Iterator[None]:
        """What `generate` allows to leave out of the steps, for the time of one sampling."""
        interval, every = self._generate.guidance_interval, self._generate.cache_interval
        with ExitStack() as stack:
            if guided and interval != (0.0, 1.0):
                stack.enter_context(steps.guided_within(self._denoiser, interval, lambda: self.pipeline.num_timesteps))
            if every > 1:
                stack.enter_context(steps.deep_features_kept(self._denoiser, every))
            yield

    def _fewest_steps(self) -> int:
        """The smallest number of steps that the scheduler takes at this strength."""
        asked, config = self._generate, self.pipeline.scheduler.config
        for number in range(1, asked.num_inference_steps):
            with suppress(ConfigError):
                family = self._family
                schedulers.check_steps(
                    asked.scheduler,
                    config,
                    number,
                    asked.strength,
                    counts_steps=family.counts_steps,
                    kind=family.samplers,
                )
                return number
        return asked.num_inference_steps

    def _unconditional(self, requests: list[Request]) -> Condition:
        """The other side of the guidance: without the conditions that `guidance_on` names, with those that it does
        not."""
        negative, on = self._generate.negative_prompt, self._generate.guidance_on
        keeps = on == "image"
        return tell(
            self._encoder,
            [request.prompt if keeps else negative for request in requests],
            [request.label if keeps else None for request in requests],
            [request.token if on == "text" else None for request in requests],
        )

    def _initial(self, requests: list[Request]) -> torch.Tensor:
        latents = [request.init_latents for request in requests if request.init_latents is not None]
        if len(latents) < len(requests) or any(latent.shape != self._latent_shape for latent in latents):
            raise ValueError(f"strength below 1 needs an initial latent of shape {self._latent_shape}")
        return torch.from_numpy(np.stack(latents))

    def _decode(self, latents: torch.Tensor) -> _Arriving:
        parts = [self._decode_together(part) for part in latents.split(self._vae_batch or len(latents))]
        pixels, good = (torch.cat(column) for column in zip(*parts, strict=True))
        return _Arriving(pixels, torch.stack([_finite_rows(latents), good]))

    def _decode_together(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (N, H, W, 3) uint8 and whether they were finite (N,); in float16 what overflows is decoded again."""
        decoded = from_latents(self._vae, latents).float()
        good = _finite_rows(decoded)
        if latents.dtype == torch.float16:
            again = _finite_rows(latents) & ~good
            if again.any():
                decoded[again] = self._decode_in_float32(latents[again])
                good = _finite_rows(decoded)
        pixels = decoded.permute(0, 2, 3, 1).contiguous()  # nobody else has it: in place from here on
        return pixels.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8), good

    def _decode_in_float32(self, latents: torch.Tensor) -> torch.Tensor:
        with self._vae_in_float32():
            return from_latents(self._vae, latents.float())

    @contextmanager
    def _vae_in_float32(self) -> Iterator[None]:
        dtype = self._vae.dtype
        self._vae.to(torch.float32)
        try:
            yield
        finally:
            self._vae.to(dtype)

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior's means (N, C, h, w) float32 of images in the VAE's dtype; in float16 what overflows is encoded
        again."""
        means: torch.Tensor = self._vae.encode(images).latent_dist.mode().float()
        if images.dtype == torch.float16 and not (good := _finite_rows(means)).all():
            with self._vae_in_float32():
                means[~good] = self._vae.encode(images[~good].float()).latent_dist.mode()
        return means

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        # Contiguous, as a layout spreads from the first layer to the last: which one is used is for `channels_last` to
        # say.
        images = torch.from_numpy(pixels).to(self._vae.device).permute(0, 3, 1, 2).contiguous()
        images = (images.float() / 127.5 - 1).to(self._vae.dtype)
        try:
            parts = images.split(self._vae_batch or len(images))
            latents = torch.cat([self._latents(part) for part in parts])
        except (RuntimeError, MemoryError) as error:
            _raise_if_out_of_memory(error, len(pixels))
            raise
        if not latents.isfinite().all():
            raise DataError(
                "model.checkpoint",
                "the VAE encodes a real image to numbers that are not finite",
                "set model.dtype to float32",
            )
        config = self._vae.config
        return ((latents - (config.shift_factor or 0.0)) * config.scaling_factor).contiguous().cpu().numpy()


def _rebuild(family: Family, pipeline: Any, scheduler: Any, from_image: bool) -> Any:
    """The family's pipeline for the mode, of the same models; keeps the latent size that the constructor may reset."""
    denoiser = getattr(pipeline, family.denoiser)
    size = denoiser.config.sample_size
    rebuilt = family.for_sampling(pipeline, from_image)
    rebuilt.register_modules(scheduler=scheduler)  # as it is: constructors change the settings of the one that they get
    denoiser.register_to_config(sample_size=size)
    if from_image:
        channels = pipeline.vae.config.latent_channels
        rebuilt.image_processor = VaeImageProcessor(vae_scale_factor=_scale(pipeline.vae), vae_latent_channels=channels)
    rebuilt.set_progress_bar_config(disable=True)
    return rebuilt


def _scale(vae: Any) -> int:
    """Pixels along the side of a latent pixel."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _finite_rows(values: torch.Tensor) -> torch.Tensor:
    """Which rows hold neither infinities nor NaN, which minimum and maximum pass on: a ninth of `isfinite`'s time on a
    CPU."""
    rows = values.flatten(1)
    return rows.amin(1).isfinite() & rows.amax(1).isfinite()


def _to_host(values: torch.Tensor) -> torch.Tensor:
    """On the host, from CUDA into pinned memory and without waiting; the tensor itself where it is there."""
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _raise_if_out_of_memory(error: Exception, images: int) -> None:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        raise OutOfMemory(images, f"{images} image(s) do not fit: {_one_line(error)}")


def _raise_if_device_fault(error: Exception) -> None:
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        raise error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
