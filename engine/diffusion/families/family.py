"""What the engine asks of a family of generators: what its directories hold, how it is told, noised, sampled and
adapted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypeAlias, TypedDict

from engine.diffusion.families.parts import Part
from engine.diffusion.schedulers import Kind
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    from engine.diffusion.families.adapters import Adapters
    from engine.diffusion.process import Process

# What a network is told, by the family's own names; one image's has no batch dimension. `states` (L, D) are text
# tokens.
Condition: TypeAlias = "dict[str, torch.Tensor]"
Configs = Mapping[str, Mapping[str, Any]]
# Where image features may stand in `states`, by their width: the token, and the first channel there.
Places = dict[int, tuple[int, int]]


class CheckpointFacts(TypedDict):
    """What a family reads of a checkpoint's configurations; `classes`: how many it knows, where it is told classes."""

    latent_channels: int
    latent_size: int
    places: Places
    text_length: int
    prediction_type: str
    classes: NotRequired[int]


class Encoder(Protocol):
    """Turns prompts and classes into what the network is told, one at a time, so that nothing depends on its
    neighbours."""

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """The condition of one prompt, or of class `label` where the family knows classes only; None: no class, no
        prompt.

        On the encoder's device and in its dtype, without a batch dimension. An empty or negative prompt comes with the
        label None.
        """

    def place(self, width: int) -> tuple[int, int]:
        """Where an image feature of `width` numbers stands in `states`: its token, and its first channel there.

        Raises ConfigError where there is no place for it.
        """


class Family(Protocol):
    """One kind of generator; `denoiser` is the pipeline's component that a fine-tune changes.

    `pipelines`: the classes that an index may name, the stock text-to-image (or class-to-image) one first; `parts`: the
    components by name; `settings`: plain entries of the index that the pipeline's constructor takes; `samplers`: the
    kind of training, whose samplers apply; `counts_steps`: from noise too, the stock pipeline tells the sampler its
    first step, which samplers find by its time otherwise (where steps have equal times, the second). Nothing here
    imports torch before it needs it.
    """

    name: str
    denoiser: str
    pipelines: tuple[str, ...]
    parts: Mapping[str, Part]
    settings: tuple[str, ...]
    samplers: Kind
    counts_steps: bool
    adapters: Adapters

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """What the configurations say, for a Checkpoint.

        Raises ConfigError where components do not fit each other, the image size, or the stock pipeline.
        """

    def check_generate(self, generate: GenerateSpec) -> None:
        """Refuse what the family cannot be asked (ConfigError)."""

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, object]:
        """The scheduler's configuration as the stock pipeline's constructor leaves it."""

    def build(self, components: Mapping[str, Any]) -> Any:
        """The stock pipeline of loaded components and settings."""

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """A pipeline of the same models for text-to-image, or from latents for image-to-image."""

    def ask(self, condition: Condition, without: Condition | None, side: int | None) -> dict[str, object]:
        """How that pipeline's call is told a batched condition, and what guidance leads away from, if there is
        guidance.

        `side`: pixels of the image, None where the call starts from latents.
        """

    def encoder(self, pipeline: Any) -> Encoder:
        """The encoder of a loaded pipeline."""

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """The noising process that the checkpoint was trained under."""

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's prediction (B, C, h, w) for noisy latents (B, C, h, w) at times (B,) under a batched
        condition."""

    def example(self, denoiser: Any) -> Condition:
        """A condition of one image as the denoiser's configuration has it, all zeros."""

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """Write the adapter that peft has put into the denoiser as the file that stock diffusers loads."""

    def save_whole(self, folder: Path, denoiser: Any) -> tuple[str, ...]:
        """Write the components that a fine-tune of all weights has changed, and give their names."""


def to_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents (N, C, h, w), the posterior's mode, of images (N, 3, H, W) in [-1, 1]."""
    latents = vae.encode(images).latent_dist.mode()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def from_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W), about [-1, 1], of scaled latents."""
    return vae.decode(latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)).sample


def with_tokens(condition: Condition, tokens: torch.Tensor, place: tuple[int, int]) -> Condition:
    """A batched condition whose `states` (B, L, D) have the image features `tokens` (B, W) written at `place`.

    The released Real-Fake code (arXiv 2310.10402) puts the projected, not normalised, CLIP image feature in the place
    of the last text token.
    """
    row, first = place
    states = condition["states"].clone()
    states[:, row, first : first + tokens.shape[1]] = tokens.to(states)
    return {**condition, "states": states}


def places(widths: Sequence[int], token: int) -> Places:
    """Where features fit in a text token whose channels are those of encoders of these `widths`, one after another."""
    found: Places = {}
    for number, width in enumerate(widths):
        found.setdefault(width, (token, sum(widths[:number])))
    return found


def find_place(found: Places, width: int) -> tuple[int, int]:
    """The place for a feature of `width` numbers; ConfigError where there is none."""
    if width not in found:
        raise ConfigError(
            "conditions.features",
            f"the CLIP image features have {width} numbers, the checkpoint's text tokens "
            f"{' or '.join(map(str, found))}",
            "use the CLIP that the checkpoint was trained with, or set generate.visual_token to none",
        )
    return found[width]


def tell(
    encoder: Encoder, prompts: Sequence[str], labels: Sequence[int | None], tokens: Sequence[np.ndarray | None]
) -> Condition:
    """The batched condition of N samples, each encoded alone, its image feature `tokens[i]` (W,) float32 in its place.

    A token of None leaves the text as it is. ConfigError where a token has no place, ValueError where it is not finite.
    """
    import torch

    told = [encoder.encode(prompt, label) for prompt, label in zip(prompts, labels, strict=True)]
    condition = {name: torch.stack([one[name] for one in told]) for name in told[0]}
    for number, token in enumerate(tokens):
        if token is not None:
            row, first = encoder.place(token.shape[-1])
            condition["states"][number, row, first : first + token.shape[-1]] = _finite(token).to(condition["states"])
    return condition


def _finite(token: np.ndarray) -> torch.Tensor:
    import numpy as np
    import torch

    if not np.isfinite(token).all():
        raise ValueError("the visual token is not finite")
    return torch.from_numpy(np.ascontiguousarray(token, dtype=np.float32))
