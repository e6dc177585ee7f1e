"""DiT (arXiv 2212.09748): a transformer that is told a class, and no text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion.families import checks
from engine.diffusion.families import parts as known
from engine.diffusion.families.adapters import Adapters, Plain
from engine.diffusion.families.family import CheckpointFacts, Condition, Configs
from engine.diffusion.families.parts import Part
from engine.diffusion.schedulers import Kind
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec

if TYPE_CHECKING:
    import torch

    from engine.diffusion.process import Process

CLASSES = 1000  # DiTPipeline's null class is number 1000, whatever the transformer knows
_NO_TOKEN = "set generate.visual_token to none"
PARTS = {
    "vae": known.VAE,
    "transformer": Part("model", ("DiTTransformer2DModel", "Transformer2DModel")),
    "scheduler": known.DIFFUSION_SCHEDULER,
}


class ClassEncoder:
    """The number of the class, `labels` (); without one, that of the null class."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """The prompt is not read. ConfigError for a class that the checkpoint does not know."""
        import torch

        if label is not None and not 0 <= label < CLASSES:
            raise ConfigError("model.checkpoint", f"knows {CLASSES} classes, none of them number {label}")
        return {"labels": torch.tensor(CLASSES if label is None else label, device=self._device)}

    def place(self, width: int) -> tuple[int, int]:
        """There is none."""
        raise ConfigError("generate.visual_token", "the checkpoint is told classes only, no image features", _NO_TOKEN)


class Dit:
    """The family of `DiTPipeline`; which class has which number is for `engine.diffusion.classes` to say."""

    name = "DiT"
    denoiser = "transformer"
    pipelines: tuple[str, ...] = ("DiTPipeline",)
    parts: Mapping[str, Part] = PARTS
    settings: tuple[str, ...] = ("id2label",)
    samplers: Kind = "diffusion"
    counts_steps = False
    adapters: Adapters = Plain("transformer")

    def facts(self, folder: Path, configs: Configs, image_size: int) -> CheckpointFacts:
        """Refuses another number of classes than 1,000: the stock pipeline's null class is number 1000."""
        network, vae = configs["transformer"], configs["vae"]
        taken = network.get("in_channels", 4)
        given = network.get("out_channels") or taken
        channels = checks.latent_channels(folder, "transformer", (taken, taken if given == 2 * taken else given), vae)
        known = network.get("num_embeds_ada_norm", 1000)
        if network.get("norm_type", "ada_norm_zero") != "ada_norm_zero" or known != CLASSES:
            what = (
                f"knows {known} classes by {network.get('norm_type', 'ada_norm_zero')}; "
                f"DiTPipeline needs {CLASSES} by ada_norm_zero"
            )
            raise ConfigError(str(folder / "transformer"), what, "use a DiT checkpoint")
        return {
            "latent_channels": channels,
            "latent_size": checks.patch_latent_size(network, vae, image_size),
            "places": {},
            "text_length": 0,
            "prediction_type": checks.prediction_type(folder, configs["scheduler"], self.name),
            "classes": CLASSES,
        }

    def check_generate(self, generate: GenerateSpec) -> None:
        """No visual token, no negative prompt, no kept features."""
        checks.no_kept_features(generate, self.name)
        if generate.visual_token != "none":
            what = f"is {generate.visual_token}, but the checkpoint is told classes only, no image features"
            raise ConfigError("generate.visual_token", what, _NO_TOKEN)
        if generate.negative_prompt:
            what = "is set, but the checkpoint is told classes only, no text"
            raise ConfigError("generate.negative_prompt", what, "leave it out")

    def scheduler_config(self, config: Mapping[str, Any]) -> dict[str, object]:
        """As it is."""
        return dict(config)

    def build(self, components: Mapping[str, Any]) -> Any:
        """Classes are never dropped at random."""
        from diffusers import DiTPipeline

        without_dropout(components["transformer"])
        return DiTPipeline(**components)

    def for_sampling(self, pipeline: Any, from_image: bool) -> Any:
        """The same for both."""
        from engine.diffusion.families.pipelines import ClassToImage

        return ClassToImage(**pipeline.components)

    def ask(self, condition: Condition, without: Condition | None, side: int | None) -> dict[str, object]:
        """`class_labels`, and the null class for guidance."""
        labels: dict[str, object] = {"class_labels": condition["labels"]}
        return labels if without is None else labels | {"null_labels": without["labels"]}

    def encoder(self, pipeline: Any) -> ClassEncoder:
        """The encoder of a loaded pipeline."""
        return ClassEncoder(pipeline.transformer.device)

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """DDPM's, with the checkpoint's noise schedule and prediction type."""
        from engine.diffusion.process import Diffusion

        return Diffusion.of(scheduler_config, device)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The transformer's output without its learnt variance."""
        predicted: torch.Tensor = denoiser(noisy, timestep=times, class_labels=condition["labels"]).sample
        return predicted[:, : noisy.shape[1]]

    def example(self, denoiser: Any) -> Condition:
        """A class."""
        import torch

        return {"labels": torch.zeros(1, dtype=torch.int64)}

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's configuration as metadata; diffusers has no loader for it, `engine.diffusion.lora` has."""
        self.adapters.save(folder, name, denoiser)

    def save_whole(self, folder: Path, denoiser: Any) -> tuple[str, ...]:
        """The transformer alone."""
        denoiser.save_pretrained(folder / self.denoiser, safe_serialization=True)
        return (self.denoiser,)


def without_dropout(transformer: Any) -> None:
    """Switch off the embedding's own dropping of classes, which draws from the global generator: the null class is
    asked for instead."""
    from diffusers.models.embeddings import LabelEmbedding

    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
