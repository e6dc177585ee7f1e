"""Captions by a model: BLIP, BLIP-2, Qwen-VL and Florence-2 through transformers, from a local directory, decoded
greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.conditions import localmodel
from engine.conditions.captionfamilies import KEY, KINDS, Family
from engine.errors import ConfigError
from engine.spec.recipe import CaptionSpec
from engine.storage import origin

BATCH = 16
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def precheck(spec: CaptionSpec) -> list[Path]:
    """The files that make the captions; raises ConfigError in one line, before Ray or a GPU is used, when they
    cannot."""
    folder = Path(spec.path or "")
    family = _family(spec, folder)
    more = family.files(folder)
    weights = localmodel.weights(folder, KEY)
    localmodel.check_sizes(folder / "config.json", localmodel.config(folder, KEY), weights)
    processors = [folder / name for name in PROCESSORS if (folder / name).is_file()]
    if not any(processor.name in PROCESSORS[:2] for processor in processors):
        raise ConfigError(KEY, f"{folder} has no preprocessor_config.json", "copy the model's processor files too")
    for processor in processors:
        localmodel.config(folder, KEY, processor.name)
    tokenizer = localmodel.tokenizer_files(folder, KEY)
    if not tokenizer:
        raise ConfigError(KEY, f"{folder} has no tokenizer files", "copy the model's tokenizer files too")
    options = [p for p in (folder / "config.json", folder / "generation_config.json") if p.is_file()]
    return [*weights, *options, *processors, *tokenizer, *more]


def _family(spec: CaptionSpec, folder: Path) -> Family:
    """The family of the directory's model; ConfigError for other models, and for an instruction that it cannot
    follow."""
    families = KINDS[spec.kind]
    kind = localmodel.config(folder, KEY).get("model_type")
    if kind not in families:
        *known, last = families
        fix = f"give a captioning model of type {', '.join(known)} or {last}"
        raise ConfigError(KEY, f"{folder} holds a model of type {kind!r}", fix)
    family, asked, key = families[kind], spec.instruction, "conditions.caption.instruction"
    if asked is not None and family.instruction is None:
        raise ConfigError(key, f"a model of type {kind} takes no instruction", "leave it out")
    if asked is not None and family.tasks and asked not in family.tasks:
        raise ConfigError(key, f"a model of type {kind} has no task {asked!r}", f"use one of {', '.join(family.tasks)}")
    if asked is not None and "<|" in asked:
        raise ConfigError(key, f"{asked!r} has control tokens (<|)", "write it in plain words")
    return family


class Said(TypedDict):
    """A caption, and whether it was cut at the longest length."""

    caption: str
    cut: bool


class CaptionModel:
    """The observer of the strategies `blip` and `model`; float32 on CPU, the family's half precision on CUDA."""

    def __init__(self, spec: CaptionSpec, device: str = "cpu") -> None:
        """Loads the model; ConfigError when its files are not whole or do not fit together."""
        import torch
        import transformers

        precheck(spec)
        self._family = _family(spec, Path(spec.path or ""))
        self._instruction = spec.instruction or self._family.instruction or ""
        self._limit, self._device = int(spec.max_new_tokens), device
        self._dtype = getattr(torch, self._family.half) if device.startswith("cuda") else torch.float32
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(spec.path, **local)
            model, info = getattr(transformers, self._family.model).from_pretrained(
                spec.path, use_safetensors=True, dtype=self._dtype, output_loading_info=True, **local
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(KEY, f"{spec.path} cannot be loaded ({_line(error)})", "copy the model again") from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])[0]
            raise ConfigError(KEY, f"{spec.path} lacks weights ({missing})", "give the captioning variant of the model")
        self._model = origin.owned(model.to(device)).eval()
        self._ends = _ends(model, self._processor.tokenizer)

    def __call__(self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> list[Said]:
        """`caption`, and whether it was `cut` at the longest length, of each of N images (H,W,3) or (H,W) uint8."""
        images = [np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image for image in pixels]
        return [said for first in range(0, len(images), BATCH) for said in self._batch(images[first : first + BATCH])]

    def _batch(self, images: list[NDArray[np.uint8]]) -> list[Said]:
        import torch

        asked = self._family.ask(self._processor, images, self._instruction)
        inputs = {name: self._placed(values) for name, values in asked.items()}
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=self._limit, do_sample=False, num_beams=1)
        new = tokens[:, self._family.start(self._model, inputs) :]
        texts = self._family.read(self._processor, new, self._instruction)
        cut = [self._is_cut(row) for row in new.tolist()]
        return [{"caption": " ".join(text.split()), "cut": flag} for text, flag in zip(texts, cut, strict=True)]

    def _placed(self, values: Any) -> Any:
        return values.to(self._device, self._dtype if values.is_floating_point() else None)

    def _is_cut(self, row: list[int]) -> bool:
        """Whether a caption of these new tokens ran to the longest length; an end that is forced there is none."""
        said = row[:-1] if self._model.generation_config.forced_eos_token_id is not None else row
        return len(row) >= self._limit and self._ends.isdisjoint(said)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a caption, or fill up behind its end."""
    found = {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    for config in (model.generation_config, model.config.get_text_config()):
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends) if isinstance(ends, list | tuple) else {ends}
    return found - {None}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
