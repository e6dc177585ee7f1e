"""Which CLIP gives image features, found and checked from files alone: no GPU, no Ray, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.conditions import localmodel
from engine.diffusion import plausible
from engine.errors import ConfigError
from engine.regular import Json
from engine.spec.recipe import FeatureSpec, RunSpec

KEY = "conditions.features"
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)  # what open_clip takes before any pickle
LOCAL = "local-dir:"
OPEN_CLIP = "open_clip_config.json"
# What open_clip does with images where only a name is given (its PreprocessCfg; OpenAI's mean and deviation).
PREPARED = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class FeatureModel:
    """A checked model: how to load it, the width of its features (0: none are computed), whether it scores text."""

    loader: str
    source: str
    dim: int
    files: tuple[Path, ...] = ()
    preprocessor: str = ""
    tokenizer: str = ""
    weights: str = ""
    scorer: FeatureModel | None = None  # the CLIP beside it, where this one has no text tower at all

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower with its tokenizer, as CLIP scores need."""
        return bool(self.tokenizer)

    @property
    def digest(self) -> str:
        """Identity (SHA-256, hex) of the model's files, wherever they lie."""
        return localmodel.digest(self.files)


NONE = FeatureModel("none", "", 0)
ENCODER = "encoder"  # the folder of a checkpoint whose image features are those of a network of its own images


def resolve(spec: FeatureSpec, checkpoint: Path | None, *, needed: bool = True) -> FeatureModel:
    """The model that the recipe names; `checkpoint` is the generator's directory.

    Raises ConfigError in one line when it is missing, broken, pickled, or needs the network or code of its own. A
    checkpoint without an image encoder gives `NONE` when features are not `needed`.
    """
    if spec.backend == "open_clip":
        return _open_clip(spec)
    if spec.backend == "transformers":
        folder = Path(spec.path or "")
        return _clip(folder, folder, folder, f"{KEY}.path")
    if checkpoint is None:
        raise ConfigError(KEY, "backend checkpoint needs a generator", "pretrain first or set model.checkpoint")
    clip = None
    if (checkpoint / "clip").is_dir():
        clip = _clip(checkpoint / "clip", checkpoint / "feature_extractor", checkpoint / "tokenizer", KEY)
    if (checkpoint / ENCODER).is_dir():
        return _encoder(checkpoint / ENCODER, clip)
    if clip is not None:
        return clip
    if (checkpoint / "image_encoder").is_dir():
        return _vision(checkpoint / "image_encoder", checkpoint / "feature_extractor")
    if needed:
        fix = "set conditions.features to a local CLIP (transformers or open_clip), or generate.visual_token: none"
        raise ConfigError(KEY, f"{checkpoint} has no image_encoder", fix)
    return NONE


def scorer(spec: RunSpec, checkpoint: Path) -> FeatureModel:
    """The CLIP that scores images against prompts: the feature model itself, or the one beside it."""
    found = resolve(spec.conditions.features, checkpoint)
    return found.scorer or found


def needed(spec: RunSpec) -> bool:
    """Whether a run uses image features at all."""
    match = spec.match is not None and (spec.match.visual_token != "none" or spec.match.mmd == "kernel_feature")
    return match or spec.generate.visual_token != "none" or spec.generate.gate.min_clip_score is not None


def check_use(spec: RunSpec, model: FeatureModel, widths: Collection[int] | None) -> None:
    """Raise ConfigError when the model cannot do what the run asks of it.

    A visual token takes the place of a text token, so its width must be one of those that the checkpoint has a place
    for (`widths`; None: not known yet); a threshold on CLIP scores needs the text tower.
    """
    tokens = {"generate.visual_token": spec.generate.visual_token}
    tokens |= {"match.visual_token": spec.match.visual_token} if spec.match is not None else {}
    used = {key: token for key, token in tokens.items() if token != "none"}
    if used and widths is not None and model.dim not in widths:
        key, token = next(iter(used.items()))
        fitting = " or ".join(map(str, sorted(widths)))
        if not widths:
            what = f"is {token}, but the checkpoint is told classes only, no image features"
            raise ConfigError(key, what, f"set {key} to none")
        what = f"image features are {model.dim} wide, the checkpoint's text tokens {fitting}"
        raise ConfigError(KEY, what, f"use a CLIP of projection width {fitting}, or {key}: none")
    if spec.generate.gate.min_clip_score is not None and not (model.scorer or model).has_text:
        what = "is set, and the feature model has no text tower or no tokenizer"
        raise ConfigError(
            "generate.gate.min_clip_score", what, "give a whole CLIP in conditions.features, or leave it out"
        )


def _processor(places: tuple[Path, ...], key: str) -> Path:
    """The file that tells how images are prepared, where transformers looks for it: `processor_config.json` of its
    version 5 first."""
    for place in places:
        for name in PROCESSORS:
            if (place / name).exists():
                config = localmodel.config(place, key, name)
                own = config.get("image_processor") if name == PROCESSORS[0] else config
                if isinstance(own, dict):
                    plausible.numbers(place / name, own)
                    return place / name
    what = f"{places[0]} has no {PROCESSORS[1]} and no {PROCESSORS[0]} with an image_processor"
    raise ConfigError(key, what, "copy the model's image processor too")


def _config(folder: Path, key: str, kind: str, wanted: str) -> Json:
    config = localmodel.config(folder, key)
    if config.get("model_type") != kind:
        raise ConfigError(
            key, f"{folder} holds a model of type {config.get('model_type')!r}", f"give a {wanted} directory"
        )
    return config


def _width(config: Mapping[str, Any], name: str, place: Path, key: str) -> int:
    width = config.get(name)
    if not isinstance(width, int) or width < 1:
        raise ConfigError(key, f"{place} has no {name}", "give a CLIP with projected features")
    return width


def _clip(folder: Path, processors: Path, tokenizers: Path, key: str) -> FeatureModel:
    config = _config(folder, key, "clip", "CLIPModel")
    processor = _processor((folder, processors), key)
    tokenizer = next((place for place in (folder, tokenizers) if localmodel.tokenizer_files(place, key)), None)
    weights = localmodel.weights(folder, key)
    localmodel.check_sizes(folder / "config.json", config, weights)
    files = [*weights, folder / "config.json", processor]
    return FeatureModel(
        loader="clip",
        source=str(folder),
        dim=_width(config, "projection_dim", folder / "config.json", key),
        files=(*files, *(localmodel.tokenizer_files(tokenizer, key) if tokenizer else ())),
        preprocessor=str(processor.parent),
        tokenizer=str(tokenizer) if tokenizer else "",
    )


def _vision(folder: Path, processors: Path) -> FeatureModel:
    config = _config(folder, KEY, "clip_vision_model", "CLIPVisionModelWithProjection")
    processor = _processor((folder, processors), KEY)
    weights = localmodel.weights(folder, KEY)
    localmodel.check_sizes(folder / "config.json", config, weights)
    return FeatureModel(
        loader="vision",
        source=str(folder),
        dim=_width(config, "projection_dim", folder / "config.json", KEY),
        files=(*weights, folder / "config.json", processor),
        preprocessor=str(processor.parent),
    )


def _encoder(folder: Path, clip: FeatureModel | None) -> FeatureModel:
    """The closed-set encoder: a `ConvNextModel`, whose features are its pooled output."""
    config = _config(folder, KEY, "convnext", "ConvNextModel")
    processor = _processor((folder,), KEY)
    weights = localmodel.weights(folder, KEY)
    localmodel.check_sizes(folder / "config.json", config, weights)
    sizes = config.get("hidden_sizes")
    return FeatureModel(
        loader="encoder",
        source=str(folder),
        dim=_width(
            {"hidden_sizes": sizes[-1] if isinstance(sizes, list) and sizes else None},
            "hidden_sizes",
            folder / "config.json",
            KEY,
        ),
        files=(*weights, folder / "config.json", processor),
        preprocessor=str(processor.parent),
        scorer=clip,
    )


def _open_clip(spec: FeatureSpec) -> FeatureModel:
    path = Path(spec.path or "")
    if spec.model and ":" in spec.model:
        fix = "give the folder as path (with its open_clip_config.json) and leave model out"
        raise ConfigError(f"{KEY}.model", f"{spec.model} is not a model name of open_clip", fix)
    if path.is_dir():
        return _open_clip_folder(path)
    localmodel.check_safetensors(path, f"{KEY}.path")
    config = _builtin(spec.model or "")
    _check_beside(path, spec.model or "", config)
    text = config["text_cfg"]
    _check_towers(config, f"{KEY}.model")
    simple = "hf_tokenizer_name" not in text and "siglip" not in (spec.model or "").lower()
    return FeatureModel(
        loader="open_clip",
        source=spec.model or "",
        dim=_width(config, "embed_dim", path, f"{KEY}.model"),
        files=(path,),
        tokenizer=spec.model or "" if simple else "",  # the others would come from the Hub
        weights=str(path),
    )


def _check_beside(weights: Path, model: str, config: Mapping[str, Any]) -> None:
    """Refuse weights whose own configuration is not there, or is not what open_clip takes for the name (ConfigError).

    Weights of one name were trained with different activations, means and deviations, which no number in them tells.
    """
    folder = weights.parent
    if not (folder / OPEN_CLIP).exists():
        what = (
            f"{weights} has no {OPEN_CLIP} beside it, which says how images are prepared "
            "(mean, std) and which quick_gelu it has"
        )
        raise ConfigError(f"{KEY}.path", what, f"copy the {OPEN_CLIP} of the weights' repository beside it")
    own = localmodel.config(folder, f"{KEY}.path", OPEN_CLIP)
    wanted = PREPARED | {"size": config.get("vision_cfg", {}).get("image_size")}
    prepared = {key: value for key, value in (own.get("preprocess_cfg") or {}).items() if key in wanted}
    if isinstance(side := prepared.get("size"), list) and len(set(side)) == 1:
        prepared["size"] = side[0]
    pairs = {"model_cfg": (own.get("model_cfg"), config), "preprocess_cfg": (wanted | prepared, wanted)}
    differing = [key for name, (found, builtin) in pairs.items() for key in _differences(found, builtin, name)]
    if differing:
        what = f"{folder / OPEN_CLIP} differs from open_clip's own {model} in {', '.join(differing[:4])}"
        fix = f"leave {KEY}.model out and set {KEY}.path to {folder}"
        raise ConfigError(f"{KEY}.model", what, fix)


def _differences(found: Any, builtin: Any, name: str) -> list[str]:
    """Where two configurations differ; what is false or null is as good as absent."""
    if not (isinstance(found, dict) and isinstance(builtin, dict)):
        one, other = (tuple(value) if isinstance(value, list) else value for value in (found, builtin))
        return [] if one == other or not (one or other) else [name]
    keys = sorted({*found, *builtin})
    return [path for key in keys for path in _differences(found.get(key), builtin.get(key), f"{name}.{key}")]


def _open_clip_folder(folder: Path) -> FeatureModel:
    key, name = f"{KEY}.path", OPEN_CLIP
    config = localmodel.config(folder, key, name).get("model_cfg")
    if not isinstance(config, dict) or not isinstance(config.get("text_cfg"), dict):
        raise ConfigError(key, f"{folder / name} has no model_cfg", "give a folder that open_clip has written")
    _check_towers(config, key)
    found = sorted(folder.glob("*.safetensors"))
    chosen = [folder / name for name in PREFERRED if (folder / name) in found] or found
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in localmodel.PICKLES)
    if pickled and (not chosen or chosen[0].name not in PREFERRED):
        fix = f"name the safetensors weights {PREFERRED[0]}"
        raise ConfigError(key, f"open_clip would load a pickle file from {folder} ({pickled[0]})", fix)
    if not chosen:
        raise ConfigError(key, f"{folder} has no safetensors weights", "copy the model again")
    localmodel.check_safetensors(chosen[0], key)
    localmodel.check_sizes(folder / name, config, chosen[:1])
    tokens: list[Path] = localmodel.tokenizer_files(folder, key) if config["text_cfg"].get("hf_tokenizer_name") else []
    source = LOCAL + str(folder)
    has_text = bool(tokens) or not config["text_cfg"].get("hf_tokenizer_name")
    files = (chosen[0], folder / name, *tokens)
    return FeatureModel(
        "open_clip",
        source,
        _width(config, "embed_dim", folder / name, key),
        files,
        tokenizer=source if has_text else "",
    )


def _builtin(name: str) -> Json:
    """The configuration that open_clip has under this name; ConfigError with near matches when it has none."""
    package = find_spec("open_clip")
    folder = Path(package.origin or "").parent / "model_configs" if package else Path()
    known = sorted(file.stem for file in folder.glob("*.json"))
    name = name.replace("/", "-")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        fix = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()"
        raise ConfigError(f"{KEY}.model", f"open_clip has no model {name}", fix)
    return localmodel.config(folder, f"{KEY}.model", f"{name}.json")


def _check_towers(config: Mapping[str, Any], key: str) -> None:
    """Towers that open_clip would fetch from the Hub, and tokenizers with code of their own, are refused."""
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if text.get("hf_model_name") or ":" in str(vision.get("timm_model_name", "")):
        raise ConfigError(
            key, "the model's tower comes from the Hub", "use a model whose towers open_clip or timm define"
        )
    if text.get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise ConfigError(key, "the tokenizer asks for code of its own (trust_remote_code)", "use another model")
