"""A checkpoint of any family: checked whole on the CPU before it is trusted, then loaded as a stock diffusers
pipeline."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import __version__
from engine.diffusion import hub, inputs, layout, plausible, schedulers, weights
from engine.diffusion.families import FAMILIES
from engine.diffusion.families.checks import scale
from engine.diffusion.families.family import CheckpointFacts, Configs, Places
from engine.errors import ConfigError, StorageError
from engine.spec.recipe import GenerateSpec, ModelSpec
from engine.storage import node_cache as cache_of_node
from engine.storage import notes, origin


class AllFacts(CheckpointFacts):
    """What the family reads, and of the image encoder, if there is one."""

    has_image_encoder: bool
    feature_dim: int | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has passed every check, at one image size.

    `place` is its directory, or its URL on an object store. `family` is the pipeline's class as the index names it;
    `latent_size` and `image_size` are sides in pixels. `places`: which widths of image features fit, and where they
    stand in the text's `states` (none where the family reads no text);
    `text_length` counts CLIP's tokens; `classes`: how many a class-conditional generator knows, and `class_labels` how
    it calls them, where it says so. `digest` is the sha256 over
    `files`, which has the sha256 of each weight and configuration file by relative path; `feature_dim` is the width of
    the image encoder's projection.
    """

    place: str
    family: str
    image_size: int
    latent_channels: int
    latent_size: int
    places: Places
    text_length: int
    prediction_type: str
    has_image_encoder: bool
    feature_dim: int | None
    digest: str
    files: dict[str, str] = field(repr=False)
    parameters: int
    classes: int | None = None
    class_labels: dict[int, str] | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The directory on this node; that of a URL is fetched at its first use and must hold the same bytes
        (StorageError)."""
        return hub.here(self.place, self.digest, self.files)


def inspect(model: ModelSpec, image_size: int) -> Checkpoint:
    """Check a local directory, the copy of a URL's folder, or a cached Hub snapshot without a GPU; ConfigError, one
    line, for whatever cannot be used.

    Structure first (in moments, without torch), then every number of every weight, then that diffusers and transformers
    find all the weights that the models need. What has passed is noted by its digest on this node: the same bytes are
    hashed again, but neither torch nor diffusers is imported for them.
    """
    folder = hub.locate(model.checkpoint, model.revision)
    index = layout.read_index(folder)
    layout.refuse_code(folder, index.components)
    tokenizers = index.named("tokenizer")
    described = sorted(index.components.difference(tokenizers))
    configs = {name: layout.read_json(layout.config_file(folder, name)) for name in [*described, *tokenizers]}
    for name in described:
        plausible.numbers(layout.config_file(folder, name), configs[name])
    facts = _facts(folder, index, configs, image_size)
    found = {name: layout.find_weights(folder, name) for name in index.named("model", "beside")}
    headers = {name: [weights.read_header(path) for path in part.files] for name, part in found.items()}
    for name, part in found.items():
        plausible.repeats(layout.config_file(folder, name), configs[name], weights.read_headers(part.files))
    texts = [path for name in tokenizers for path in layout.tokenizer_files(folder, name)]
    files = [path for part in found.values() for path in part.files]
    indexes = [part.index for part in found.values() if part.index]
    indexes += [folder / "model_index.json"] if index.settings else []
    digests = _digests(folder, [*files, *texts, *indexes, *(layout.config_file(folder, name) for name in described)])
    if "://" in str(model.checkpoint):
        cache_of_node.check(folder, digests)
    digest = hashlib.sha256("".join(f"{name} {value}\n" for name, value in digests.items()).encode()).hexdigest()
    key = {"checkpoint": digest, "pipeline": index.pipeline, "versions": _versions(), "format": 2}
    notes.once("checkpoint", key, lambda: _check_sound(folder, files, tuple(found), digest))
    parts = [header for name in index.named("model") for header in headers[name]]
    return Checkpoint(
        place=hub.place(model.checkpoint, folder),
        family=index.pipeline,
        image_size=image_size,
        digest=digest,
        files=digests,
        parameters=sum(tensor.size for header in parts for tensor in header.values()),
        class_labels=layout.read_labels(index.settings.get("id2label"), facts.get("classes") or 0),
        **facts,
    )


def size_note(folder: Path, image_size: int) -> str | None:
    """What to tell where images are drawn at another side in pixels than the one that a directory's configuration
    names."""
    family = layout.read_index(folder).family
    side = layout.read_json(layout.config_file(folder, family.denoiser)).get("sample_size")
    scaled = scale(layout.read_json(layout.config_file(folder, "vae"))) if "vae" in family.parts else 1
    own = side * scaled if isinstance(side, int) else image_size
    if own == image_size:
        return None
    return (
        f"images.size is {image_size}, the generator's own size is {own}: at other sizes "
        "than they learnt, generators draw worse"
    )


def check_generate(checkpoint: Checkpoint, generate: GenerateSpec) -> list[str]:
    """Refuse a sampling that the family or the checkpoint's scheduler configuration cannot do (ConfigError).

    Gives the settings `key=value` of that configuration which the sampler leaves out.
    """
    family, name = FAMILIES[checkpoint.family], generate.scheduler
    schedulers.check_kind(name, family.samplers, family.name)
    family.check_generate(generate)
    if generate.guidance == "auto" and not any(file.startswith("guide/") for file in checkpoint.files):
        what = "is auto, but the checkpoint has no weaker model beside it (guide/)"
        raise ConfigError("generate.guidance", what, "set it to cfg")
    config = family.scheduler_config(layout.read_json(layout.config_file(checkpoint.path, "scheduler")))
    settings = {"scheduler": name, "steps": generate.num_inference_steps, "strength": generate.strength}
    key = {
        **settings,
        "config": config,
        "versions": _versions(),
        "counts_steps": family.counts_steps,
        "kind": family.samplers,
        "format": 4,
    }
    noted = notes.read("sampling", key)
    if not isinstance(noted, list):
        steps, kind = generate.num_inference_steps, family.samplers
        schedulers.check_steps(name, config, steps, generate.strength, counts_steps=family.counts_steps, kind=kind)
        noted = schedulers.left_out(name, config, kind)
        notes.write("sampling", key, noted)
    return [str(setting) for setting in noted]


def load(checkpoint: Checkpoint, device: str, dtype: str) -> Any:
    """The stock pipeline on `device` ("cpu", "cuda", "cuda:1") in `dtype` (float32, bfloat16, float16).

    Its default image size is the checkpoint's. Classes are fixed here, never taken from the directory; there is no
    safety checker, no image encoder and no progress bar. StorageError where a file is not the one that was checked.
    """
    import torch

    folder = checkpoint.path
    with quiet(), origin.unchanged({folder / name: digest for name, digest in checkpoint.files.items()}):
        index = layout.read_index(folder)
        family = index.family
        if index.pipeline != checkpoint.family:
            raise StorageError(
                str(folder), f"is a {index.pipeline} now, it was a {checkpoint.family}", "start a new output"
            )
        components: dict[str, Any] = {
            name: origin.owned(_load_model(folder, name, getattr(torch, dtype))[0].to(device))
            for name in index.named("model")
        }
        for model in components.values():
            model.eval().requires_grad_(False)
        denoiser = components[family.denoiser]
        denoiser.register_to_config(sample_size=checkpoint.latent_size)
        components |= {name: _load_tokenizer(folder, name) for name in index.named("tokenizer")}
        pipeline = family.build({**components, "scheduler": _load_scheduler(folder), **index.settings})
    denoiser.register_to_config(sample_size=checkpoint.latent_size)  # constructors reset that of old directories
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_sound(folder: Path, files: list[Path], components: tuple[str, ...], digest: str) -> None:
    """Every number, that all parts can be loaded, and that the denoiser is given all its inputs."""
    for path in files:
        weights.check_finite(path)
    _check_complete(folder, components, digest)
    _load_scheduler(folder)
    family = layout.read_index(folder).family
    inputs.check(folder / family.denoiser, family, empty(folder, family.denoiser))


def _versions() -> list[str]:
    """Of what a check depends on, without importing it."""
    return [__version__, *map(version, ("torch", "diffusers", "transformers", "tokenizers"))]


def _digests(folder: Path, files: list[Path]) -> dict[str, str]:
    return {str(path.relative_to(folder)): weights.sha256(path) for path in sorted(files)}


def _facts(folder: Path, index: layout.Index, configs: Configs, image_size: int) -> AllFacts:
    """What the configurations say of a Checkpoint; ConfigError where components fit neither each other nor the image
    size."""
    encoder = configs.get("image_encoder")
    try:
        return {
            **index.family.facts(folder, configs, image_size),
            "has_image_encoder": encoder is not None,
            "feature_dim": int(encoder.get("projection_dim", 512)) if encoder is not None else None,
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(str(folder), f"has configuration files with odd values ({error})") from error


def _load_model(folder: Path, component: str, dtype: Any) -> tuple[Any, Mapping[str, Any]]:
    """A component and what its loader says about missing and unexpected weights."""
    import torch

    before = torch.get_default_dtype()
    try:
        model, info = _class(folder, component).from_pretrained(
            folder,
            subfolder=component,
            variant=layout.find_weights(folder, component).variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
        )
    finally:
        torch.set_default_dtype(before)  # which the loaders leave changed when they fail
    return model, info


def _class(folder: Path, component: str) -> Any:
    """The class that a component is loaded as: the family's, whatever the directory says."""
    import diffusers
    import transformers

    part = layout.read_index(folder).family.parts[component]
    if part.classes[0] == "ReduxImageEncoder":
        from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

        return ReduxImageEncoder
    return getattr({"diffusers": diffusers, "transformers": transformers}[part.library], part.classes[0])


def empty(folder: Path, component: str) -> Any:
    """A component of a checked directory without numbers, on the meta device."""
    import torch

    kind, config = _class(folder, component), layout.read_json(layout.config_file(folder, component))
    with quiet(), torch.device("meta"):
        return kind(kind.config_class.from_dict(config)) if hasattr(kind, "config_class") else kind.from_config(config)


def _load_tokenizer(folder: Path, component: str) -> Any:
    return _class(folder, component).from_pretrained(folder / component, local_files_only=True)


def _load_scheduler(folder: Path) -> Any:
    import diffusers

    config = layout.read_json(layout.config_file(folder, "scheduler"))
    allowed = layout.read_index(folder).family.parts["scheduler"].classes
    name = config.get("_class_name")
    try:
        return getattr(diffusers, name if name in allowed else allowed[0]).from_config(config)
    except Exception as error:  # odd values, and settings of other classes, fail in as many ways as there are classes
        raise ConfigError(str(folder / "scheduler"), f"cannot be loaded ({_first_line(error)})") from error


def check_process(checkpoint: Checkpoint) -> None:
    """Refuse to train under a noising process that the checkpoint's scheduler configuration does not say
    (ConfigError)."""
    config = layout.read_json(layout.config_file(checkpoint.path, "scheduler"))
    try:
        FAMILIES[checkpoint.family].process(config)
    except Exception as error:  # as above
        what = f"names no noising process to train under ({_first_line(error)})"
        raise ConfigError(str(checkpoint.path / "scheduler"), what, "use another checkpoint") from error


@cache
def _check_complete(folder: Path, components: tuple[str, ...], digest: str) -> None:
    """Load each model on the CPU, once a process for a digest; loaders fill missing weights with random ones in
    silence."""
    import torch

    for component in components:
        of_text = component.startswith("text_encoder")
        try:
            held = weights.read_headers(layout.find_weights(folder, component).files)
            plausible.fills(layout.config_file(folder, component), empty(folder, component), held)
            with (
                quiet()
            ):  # only names, shapes and values matter here, and those of a T5 in float32 would not fit everywhere
                model, info = _load_model(folder, component, torch.bfloat16)
        except ConfigError:
            raise
        except Exception as error:  # a configuration with odd values fails anywhere in the libraries
            raise ConfigError(str(folder / component), f"cannot be loaded ({_first_line(error)})") from error
        missing = sorted(map(str, info["missing_keys"]))
        strange = [] if of_text or component == "image_encoder" else sorted(map(str, info["unexpected_keys"]))
        if missing or strange:
            kind, names = ("lacks", missing) if missing else ("has unknown", strange)
            what = f"{kind} {len(names)} weights of its model, such as {names[0]}"
            raise ConfigError(str(folder / component), what, "copy or download the whole checkpoint again")
        if of_text:
            _check_vocabulary(folder, component.replace("text_encoder", "tokenizer"), model.config.vocab_size)


def _check_vocabulary(folder: Path, component: str, vocab_size: int) -> None:
    try:
        with quiet():
            tokenizer = _load_tokenizer(folder, component)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise ConfigError(str(folder / component), f"cannot be loaded ({_first_line(error)})") from error
    if len(tokenizer) > vocab_size:
        what = f"has {len(tokenizer)} tokens, the text encoder knows {vocab_size}"
        raise ConfigError(str(folder / component), what, "use components that were made for each other")


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
