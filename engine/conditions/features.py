"""Features of images and texts by one interface: the generator's own encoder or CLIP, a transformers directory, or
open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.conditions import localmodel
from engine.conditions.featuremodel import FeatureModel
from engine.errors import ConfigError
from engine.storage import origin

BATCH = 64  # fixed: other batches would change the last bits of the features

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Towers:
    """A loaded model: one batch in, projected features (N,D) as a float tensor out.

    `images` takes pixels (N,H,W,3) uint8 through the model's own resize, crop and normalisation; `texts` cuts what is
    longer than the tower.
    """

    images: Callable[[NDArray[np.uint8]], Any]
    texts: Callable[[list[str]], Any] | None = None


class FeatureExtractor:
    """Image features (of a CLIP: projected), NOT normalised, (N,D) float32; the width is `dim`."""

    def __init__(self, model: FeatureModel, device: str = "cpu", digest: str = "") -> None:
        """Load a model that `featuremodel.resolve` has checked; ConfigError when its weights do not fit or are not
        finite.

        `digest` is the model's where the caller knows it: StorageError when the files are others.
        """
        self.dim = model.dim
        try:
            with localmodel.unchanged(model.files, digest):
                self._towers = LOADERS[model.loader](model, device)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                "conditions.features", f"{model.source} cannot be loaded ({error})", "copy it again"
            ) from None

    @property
    def has_text(self) -> bool:
        """Whether `texts` works."""
        return self._towers.texts is not None

    def images(self, pixels: NDArray[np.uint8]) -> Features:
        """Features (N,D) of pixels (N,H,W,3) uint8."""
        return self._run(self._towers.images, [pixels[rows] for rows in _batches(len(pixels))])

    def texts(self, texts: Sequence[str]) -> Features:
        """Features (N,D) of N texts; ConfigError when the model has no text tower."""
        if self._towers.texts is None:
            what = "the feature model has no text tower or no tokenizer"
            raise ConfigError("conditions.features", what, "give a whole CLIP (transformers or open_clip)")
        return self._run(self._towers.texts, [list(texts[rows]) for rows in _batches(len(texts))])

    def _run(self, function: Callable[[Any], Any], batches: list[Any]) -> Features:
        import torch

        with torch.inference_mode():
            parts = [function(batch).float().cpu().numpy() for batch in batches]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])


def clip_scores(image_features: NDArray[Any], text_features: NDArray[Any]) -> NDArray[np.float32]:
    """Cosine similarity (N,) of image and text features (N,D), pair by pair; 0 where one of them is zero."""
    images, texts = np.asarray(image_features, np.float64), np.asarray(text_features, np.float64)
    norms = np.linalg.norm(images, axis=-1) * np.linalg.norm(texts, axis=-1)
    return ((images * texts).sum(axis=-1) / np.where(norms > 0, norms, 1)).astype(np.float32)


def _batches(count: int) -> Iterator[slice]:
    return (slice(first, first + BATCH) for first in range(0, count, BATCH))


def _require_finite(model: Any, source: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(
                "conditions.features", f"{source} has weights that are not finite ({name})", "copy it again"
            )


def _pretrained(kind: Any, source: str, device: str) -> Any:
    """A transformers model from local safetensors in float32, complete and finite."""
    import torch

    model, info = kind.from_pretrained(
        source,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ConfigError(
            "conditions.features", f"{source} lacks weights ({sorted(info['missing_keys'])[0]})", "copy it again"
        )
    _require_finite(model, source)
    return origin.owned(model.to(device)).eval().requires_grad_(False)


def _vision(model: FeatureModel, device: str) -> Towers:
    """The image tower alone: `CLIPVisionModelWithProjection`."""
    from transformers import CLIPVisionModelWithProjection

    network = _pretrained(CLIPVisionModelWithProjection, model.source, device)
    prepare = _processor(model, device)
    return Towers(lambda pixels: network(pixel_values=prepare(pixels)).image_embeds)


def _encoder(model: FeatureModel, device: str) -> Towers:
    """A network of the training images alone: the pooled output of a `ConvNextModel`."""
    from transformers import ConvNextModel

    network = _pretrained(ConvNextModel, model.source, device)
    prepare = _processor(model, device)
    return Towers(lambda pixels: network(pixel_values=prepare(pixels)).pooler_output)


def _clip(model: FeatureModel, device: str) -> Towers:
    """A whole `CLIPModel`, its text tower usable where there is a tokenizer."""
    from transformers import CLIPModel, CLIPTokenizer

    network = _pretrained(CLIPModel, model.source, device)
    prepare = _processor(model, device)

    def images(pixels: NDArray[np.uint8]) -> Any:
        return network.get_image_features(pixel_values=prepare(pixels)).pooler_output

    if not model.has_text:
        return Towers(images)
    tokenizer = CLIPTokenizer.from_pretrained(model.tokenizer, local_files_only=True)
    length = network.config.text_config.max_position_embeddings

    def texts(texts: list[str]) -> Any:
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
            device
        )
        return network.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output

    return Towers(images, texts)


def _processor(model: FeatureModel, device: str) -> Callable[[NDArray[np.uint8]], Any]:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(model.preprocessor, local_files_only=True)
    return lambda pixels: processor(images=list(pixels), return_tensors="pt")["pixel_values"].to(device)


def _open_clip(model: FeatureModel, device: str) -> Towers:
    """A model of open_clip: a built-in configuration with a local weights file, or a `local-dir:` folder."""
    import open_clip
    import torch
    from PIL import Image

    network, _, prepare = open_clip.create_model_and_transforms(
        model.source, pretrained=model.weights or None, precision="fp32", device=device
    )
    _require_finite(network, model.source)
    network.eval()

    def images(pixels: NDArray[np.uint8]) -> Any:
        batch = torch.stack([prepare(Image.fromarray(image)) for image in pixels])
        return network.encode_image(batch.to(device), normalize=False)

    if not model.has_text:
        return Towers(images)
    tokenizer = _open_clip_tokenizer(model)
    return Towers(images, lambda texts: network.encode_text(tokenizer(texts).to(device), normalize=False))


def _open_clip_tokenizer(model: FeatureModel) -> Any:
    import open_clip

    text = (open_clip.get_model_config(model.source) or {}).get("text_cfg", {})
    local = {"local_files_only": True, "trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    return open_clip.get_tokenizer(model.source, **local)


LOADERS: dict[str, Callable[[FeatureModel, str], Towers]] = {
    "encoder": _encoder,
    "vision": _vision,
    "clip": _clip,
    "open_clip": _open_clip,
}


def tower(model: FeatureModel, device: str, digest: str = "") -> Callable[[Any], Any]:
    """The image tower as a differentiable function: images (N,3,H,H) in [0,1] to projected features (N,D), not
    normalised.

    Images are resized bicubically and normalised as the model's own preprocessing says; it has rounding to 8 bits
    besides.
    `digest`: as for `FeatureExtractor`.
    """
    with localmodel.unchanged(model.files, digest):
        network, side, mean, std = TENSOR_TOWERS[model.loader](model, device)

    def run(images: Any) -> Any:
        from torch.nn import functional

        if images.shape[-1] != side:
            images = functional.interpolate(images, size=side, mode="bicubic", antialias=True)
        return network((images - mean) / std)

    return run


def _tensor_transformers(model: FeatureModel, device: str) -> tuple[Callable[[Any], Any], int, Any, Any]:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

    whole = model.loader == "clip"
    network = _pretrained(CLIPModel if whole else CLIPVisionModelWithProjection, model.source, device)
    processor = CLIPImageProcessor.from_pretrained(model.preprocessor, local_files_only=True)
    side = (network.config.vision_config if whole else network.config).image_size

    def run(images: Any) -> Any:
        return network.get_image_features(images).pooler_output if whole else network(images).image_embeds

    return run, side, *_channels(processor.image_mean, processor.image_std, device)


def _tensor_encoder(model: FeatureModel, device: str) -> tuple[Callable[[Any], Any], int, Any, Any]:
    from transformers import CLIPImageProcessor, ConvNextModel

    network = _pretrained(ConvNextModel, model.source, device)
    processor = CLIPImageProcessor.from_pretrained(model.preprocessor, local_files_only=True)
    normalisation = _channels(processor.image_mean, processor.image_std, device)
    return lambda images: network(images).pooler_output, processor.size["height"], *normalisation


def _tensor_open_clip(model: FeatureModel, device: str) -> tuple[Callable[[Any], Any], int, Any, Any]:
    import open_clip

    network = open_clip.create_model(model.source, pretrained=model.weights or None, precision="fp32", device=device)
    _require_finite(network, model.source)
    network.eval().requires_grad_(False)
    wanted = network.visual.preprocess_cfg
    side = wanted["size"][0] if isinstance(wanted["size"], tuple | list) else wanted["size"]
    return lambda images: network.encode_image(images), side, *_channels(wanted["mean"], wanted["std"], device)


def _channels(mean: Sequence[float], std: Sequence[float], device: str) -> tuple[Any, Any]:
    import torch

    return torch.tensor(list(mean), device=device)[:, None, None], torch.tensor(list(std), device=device)[:, None, None]


TENSOR_TOWERS = {
    "encoder": _tensor_encoder,
    "vision": _tensor_transformers,
    "clip": _tensor_transformers,
    "open_clip": _tensor_open_clip,
}
