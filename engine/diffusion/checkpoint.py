"""A Stable Diffusion checkpoint: checked whole on the CPU before it is trusted, then loaded as a stock diffusers pipeline."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.diffusion import layout, schedulers, weights
from engine.diffusion.hub import locate
from engine.errors import ConfigError
from engine.spec.models import GenerateSpec, ModelSpec

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PREDICTION_TYPES = ("epsilon", "v_prediction")
SPECIAL_INPUTS = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has passed every check, at one image size.

    `latent_size` and `image_size` are sides in pixels; `digest` is the sha256 over `files`, which has the sha256 of each
    weight and configuration file by relative path; `feature_dim` is the width of the image encoder's projection.
    """

    path: Path
    image_size: int
    latent_channels: int
    latent_size: int
    cross_attention_dim: int
    text_length: int
    prediction_type: str
    has_image_encoder: bool
    feature_dim: int | None
    digest: str
    files: dict[str, str] = field(repr=False)
    parameters: int


def inspect(model: ModelSpec, image_size: int) -> Checkpoint:
    """Check a local directory or a cached Hub snapshot without a GPU; ConfigError, one line, for whatever cannot be used.

    Structure first (in moments, without torch), then every number of every weight, then that diffusers and transformers
    find all the weights that the models need.
    """
    folder = locate(model.checkpoint, model.revision)
    components = layout.read_index(folder)
    layout.refuse_code(folder, components)
    configs = {name: layout.read_json(layout.config_file(folder, name)) for name in sorted(components - {"tokenizer"})}
    sizes = _geometry(folder, configs, image_size)
    found = {name: layout.find_weights(folder, name) for name in layout.STEMS if name in components}
    headers = {name: [weights.read_header(path) for path in part.files] for name, part in found.items()}
    tokenizer = layout.tokenizer_files(folder)
    files = [path for part in found.values() for path in part.files]
    for path in files:
        weights.check_finite(path)
    indexes = [part.index for part in found.values() if part.index]
    digests = _digests(folder, [*files, *tokenizer, *indexes, *(layout.config_file(folder, name) for name in configs)])
    digest = hashlib.sha256("".join(f"{name} {value}\n" for name, value in digests.items()).encode()).hexdigest()
    _check_complete(folder, tuple(found), digest)
    parts = [header for name in ("unet", "vae", "text_encoder") for header in headers[name]]
    return Checkpoint(
        path=folder,
        image_size=image_size,
        digest=digest,
        files=digests,
        parameters=sum(tensor.size for header in parts for tensor in header.values()),
        **sizes,
    )


def check_generate(checkpoint: Checkpoint, generate: GenerateSpec) -> None:
    """Refuse a sampling that the checkpoint's scheduler configuration cannot do (ConfigError)."""
    config = layout.read_json(layout.config_file(checkpoint.path, "scheduler"))
    schedulers.check_steps(generate.scheduler, config, generate.num_inference_steps, generate.strength)


def load(checkpoint: Checkpoint, device: str, dtype: str) -> StableDiffusionPipeline:
    """The stock pipeline on `device` ("cpu", "cuda", "cuda:1") in `dtype` (float32, bfloat16, float16).

    Its default image size is the checkpoint's. Classes are fixed here, never taken from the directory; there is no safety
    checker, no image encoder and no progress bar.
    """
    import diffusers
    import torch

    with quiet():
        models = {
            name: _load_model(checkpoint.path, name, getattr(torch, dtype))[0].to(device).eval().requires_grad_(False)
            for name in ("vae", "unet", "text_encoder")
        }
        pipeline = diffusers.StableDiffusionPipeline(
            **models,
            tokenizer=_load_tokenizer(checkpoint.path),
            scheduler=_load_scheduler(checkpoint.path),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.unet.register_to_config(sample_size=checkpoint.latent_size)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _digests(folder: Path, files: list[Path]) -> dict[str, str]:
    return {str(path.relative_to(folder)): weights.sha256(path) for path in sorted(files)}


def _geometry(folder: Path, configs: dict[str, dict[str, Any]], image_size: int) -> dict[str, Any]:
    """The sizes of a Checkpoint; ConfigError where the components do not fit each other or the image size."""
    try:
        _check_fit(folder, configs)
        vae, text, encoder = configs["vae"], configs["text_encoder"], configs.get("image_encoder")
        return {
            "latent_channels": int(vae.get("latent_channels", 4)),
            "latent_size": _latent_size(configs["unet"], vae, image_size),
            "cross_attention_dim": int(text.get("hidden_size", 512)),
            "text_length": _text_length(folder, text),
            "prediction_type": configs["scheduler"].get("prediction_type", "epsilon"),
            "has_image_encoder": encoder is not None,
            "feature_dim": int(encoder.get("projection_dim", 512)) if encoder is not None else None,
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(str(folder), f"has configuration files with odd values ({error})") from error


def _check_fit(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse components that were not made for each other, or that stock Stable Diffusion pipelines cannot run."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    channels, taken = vae.get("latent_channels", 4), (unet.get("in_channels", 4), unet.get("out_channels", 4))
    if taken != (channels, channels):
        what = f"the U-Net takes {taken[0]} channels and gives {taken[1]}, the VAE's latents have {channels}"
        raise ConfigError(str(folder), what, "inpainting and other special U-Nets are not for this")
    special = next((key for key in SPECIAL_INPUTS if unet.get(key)), None)
    if special:
        what = f"needs inputs that Stable Diffusion 1 and 2 do not have ({special})"
        raise ConfigError(str(folder / "unet"), what, "use a Stable Diffusion 1 or 2 checkpoint")
    reads, writes = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if reads != writes:
        what = f"the U-Net reads text tokens of width {reads}, the text encoder writes {writes}"
        raise ConfigError(str(folder), what, "use components that were made for each other")
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        what = f"predicts {prediction!r}, which is neither of {', '.join(PREDICTION_TYPES)}"
        raise ConfigError(str(folder / "scheduler"), what, "use a Stable Diffusion 1 or 2 checkpoint")


def _latent_size(unet: dict[str, Any], vae: dict[str, Any], image_size: int) -> int:
    """The side of the latents; stock pipelines take multiples of 8, and U-Nets odd sides down to one pixel at the bottom."""
    scale = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    smallest = scale * 2 ** (len(unet.get("block_out_channels", (320, 640, 1280, 1280))) - 1)
    step = max(scale, 8)
    if image_size % step or image_size < smallest:
        what = f"{image_size} pixels do not fit the checkpoint, which halves them {smallest.bit_length() - 1} times"
        raise ConfigError("images.size", what, f"use a multiple of {step} from {max(step, smallest)} on")
    return image_size // scale


def _text_length(folder: Path, text: dict[str, Any]) -> int:
    positions = text.get("max_position_embeddings", 77)
    declared = layout.read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", positions)
    return min(int(declared), int(positions))


def _load_model(folder: Path, component: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A component and what its loader says about missing and unexpected weights."""
    import diffusers
    import transformers

    classes: dict[str, Any] = {
        "vae": diffusers.AutoencoderKL,
        "unet": diffusers.UNet2DConditionModel,
        "text_encoder": transformers.CLIPTextModel,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
    }
    model, info = classes[component].from_pretrained(
        folder,
        subfolder=component,
        variant=layout.find_weights(folder, component).variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        dtype=dtype,
    )
    return model, info


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _load_scheduler(folder: Path) -> Any:
    import diffusers

    config = layout.read_json(layout.config_file(folder, "scheduler"))
    name = config.get("_class_name")
    return getattr(diffusers, name if name in schedulers.CLASSES else "DDIMScheduler").from_config(config)


@cache
def _check_complete(folder: Path, components: tuple[str, ...], digest: str) -> None:
    """Load each model on the CPU, once a process for a digest; loaders fill missing weights with random ones in silence."""
    import torch

    for component in components:
        try:
            with quiet():
                model, info = _load_model(folder, component, torch.float32)
        except Exception as error:  # a configuration with odd values fails anywhere in the libraries
            raise ConfigError(str(folder / component), f"cannot be loaded ({_first_line(error)})") from error
        missing = sorted(map(str, info["missing_keys"]))
        strange = [] if component.endswith("encoder") else sorted(map(str, info["unexpected_keys"]))
        if missing or strange:
            kind, names = ("lacks", missing) if missing else ("has unknown", strange)
            what = f"{kind} {len(names)} weights of its model, such as {names[0]}"
            raise ConfigError(str(folder / component), what, "copy or download the whole checkpoint again")
        if component == "text_encoder":
            _check_vocabulary(folder, model.config.vocab_size)


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    try:
        with quiet():
            tokenizer = _load_tokenizer(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise ConfigError(str(folder / "tokenizer"), f"cannot be loaded ({_first_line(error)})") from error
    if len(tokenizer) > vocab_size:
        what = f"has {len(tokenizer)} tokens, the text encoder knows {vocab_size}"
        raise ConfigError(str(folder / "tokenizer"), what, "use components that were made for each other")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and warnings of the loaders while the block runs; what they warn of is checked here."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    before = [(module, module.get_verbosity()) for module in (of_diffusers, of_transformers)]
    bars = of_transformers.is_progress_bar_enabled()
    try:
        for module, _ in before:
            module.set_verbosity_error()
        of_transformers.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, level in before:
            module.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()
