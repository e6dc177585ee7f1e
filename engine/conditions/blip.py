"""Captions by a BLIP-class model: BLIP and BLIP-2 through transformers, from a local directory, decoded greedily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.conditions import localmodel
from engine.errors import ConfigError
from engine.spec.models import CaptionSpec

KEY = "conditions.caption.path"
CLASSES = {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}
PROMPT = {"blip": 1, "blip-2": 0}  # tokens that generate() returns before the caption and that are not marked special
BATCH = 16


def precheck(spec: CaptionSpec) -> list[Path]:
    """The files that make the captions; raises ConfigError in one line, before Ray or a GPU is used, when they cannot."""
    folder = Path(spec.path or "")
    config = localmodel.config(folder, KEY)
    kind = config.get("model_type")
    if kind not in CLASSES:
        known = " or ".join(CLASSES)
        raise ConfigError(KEY, f"{folder} holds a model of type {kind!r}", f"give a captioning model of type {known}")
    if kind == "blip-2" and not isinstance(config.get("image_token_index"), int):
        fix = "use a newer export of the model (its config.json has image_token_index)"
        raise ConfigError(KEY, f"{folder} is an old export without image tokens", fix)
    weights = localmodel.weights(folder, KEY)
    processors = [p for p in (folder / "preprocessor_config.json", folder / "processor_config.json") if p.is_file()]
    if not processors:
        raise ConfigError(KEY, f"{folder} has no preprocessor_config.json", "copy the model's processor files too")
    for processor in processors:
        localmodel.config(folder, KEY, processor.name)
    tokenizer = localmodel.tokenizer_files(folder, KEY)
    if not tokenizer:
        raise ConfigError(KEY, f"{folder} has no tokenizer files", "copy the model's tokenizer files too")
    options = [p for p in (folder / "config.json", folder / "generation_config.json") if p.is_file()]
    return [*weights, *options, *processors, *tokenizer]


class Blip:
    """The observer of the strategy `blip`; float32 on CPU, float16 on CUDA."""

    def __init__(self, spec: CaptionSpec, device: str = "cpu") -> None:
        import torch
        import transformers

        precheck(spec)
        self._limit = int(spec.max_new_tokens)
        self._device = device
        self._dtype = torch.float16 if device.startswith("cuda") else torch.float32
        kind = localmodel.config(Path(spec.path or ""), KEY)["model_type"]
        self._prompt = PROMPT[kind]
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(spec.path, **local)
            model, info = getattr(transformers, CLASSES[kind]).from_pretrained(
                spec.path, use_safetensors=True, dtype=self._dtype, output_loading_info=True, **local
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ConfigError(KEY, f"{spec.path} cannot be loaded ({error})", "copy the model again") from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])[0]
            raise ConfigError(KEY, f"{spec.path} lacks weights ({missing})", "give the captioning variant of the model")
        self._model = model.to(device).eval()

    def __call__(self, pixels: NDArray[np.uint8]) -> list[str]:
        """N captions of pixels (N,H,W,3) or (N,H,W) uint8."""
        import torch

        if pixels.ndim == 3:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)
        captions: list[str] = []
        for first in range(0, len(pixels), BATCH):
            images = list(pixels[first : first + BATCH])
            inputs = self._processor(images=images, return_tensors="pt")
            with torch.inference_mode():
                tokens = self._model.generate(
                    pixel_values=inputs["pixel_values"].to(self._device, self._dtype),
                    max_new_tokens=self._limit,
                    do_sample=False,
                    num_beams=1,
                )
            texts = self._processor.batch_decode(tokens[:, self._prompt :], skip_special_tokens=True)
            captions += [" ".join(text.split()) for text in texts]
        return captions
