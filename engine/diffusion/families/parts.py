"""What the components of a diffusers directory may be: the classes that its index may name, and how each is treated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.diffusion import schedulers

# model: weights, part of the pipeline; beside: weights that are checked only; settings: a configuration alone;
# ignored: allowed in the index because it is never opened.
Kind = Literal["model", "beside", "tokenizer", "scheduler", "settings", "ignored"]


@dataclass(frozen=True)
class Part:
    """One component; the first of `classes` is the one that is loaded, whatever else the index may call it.

    `length`: how many tokens a tokenizer gives its text encoder at most; None: as many as CLIP's encoder has positions.
    """

    kind: Kind
    classes: tuple[str, ...]
    library: Literal["diffusers", "transformers"] = "diffusers"
    required: bool = True
    length: int | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there are weight files to check."""
        return self.kind in ("model", "beside")


VAE = Part("model", ("AutoencoderKL",))
UNET = Part("model", ("UNet2DConditionModel",))
CLIP_TEXT = Part("model", ("CLIPTextModel",), "transformers")
CLIP_TEXT_PROJECTED = Part("model", ("CLIPTextModelWithProjection",), "transformers")
CLIP_TOKENIZER = Part("tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"), "transformers")
CLIP_VISION = Part("beside", ("CLIPVisionModelWithProjection",), "transformers", required=False)
IMAGE_PROCESSOR = Part(
    "settings",
    ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
    "transformers",
    required=False,
)
DIFFUSION_SCHEDULER = Part("scheduler", ("DDIMScheduler", *schedulers.CLASSES))
FLOW_SCHEDULER = Part("scheduler", schedulers.FLOW_CLASSES)
EDM_SCHEDULER = Part("scheduler", tuple(name for name in schedulers.EDM_CLASSES if name != "EDMHeunScheduler"))
