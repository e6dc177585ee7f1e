"""The files of a diffusers directory: which classes it names, which weight and tokenizer files each component has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import regular
from engine.diffusion.families import ALL, FAMILIES
from engine.diffusion.families.family import Family
from engine.diffusion.weights import PICKLED, read_header
from engine.errors import ConfigError
from engine.regular import Json

LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
STEMS = {
    name: "diffusion_pytorch_model" if part.library == "diffusers" else "model"
    for family in ALL
    for name, part in family.parts.items()
    if part.has_weights
}
VARIANTS = (None, "fp16", "bf16", "fp32")
INDEX = "model_index.json"
MAX_JSON_BYTES = 16 * 2**20
MAX_TOKENIZER_BYTES = 64 * 2**20
_CONVERT = (
    "convert it on a machine where you trust the file: "
    "DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW, safe_serialization=True)"
)


@dataclass(frozen=True)
class Index:
    """What a directory says that it is: its pipeline's class, its family, the components that are used, plain
    settings."""

    pipeline: str
    family: Family
    components: frozenset[str]
    settings: Mapping[str, Any]

    def named(self, *kinds: str) -> list[str]:
        """The used components of these kinds, in the family's order."""
        return [name for name, part in self.family.parts.items() if name in self.components and part.kind in kinds]


@dataclass(frozen=True)
class Weights:
    """The weight files of a component; `variant` is what diffusers calls the `fp16` of `model.fp16.safetensors`."""

    variant: str | None
    files: tuple[Path, ...]
    index: Path | None


def read_json(path: Path) -> Json:
    """A JSON object of at most 16 MiB; ConfigError where it is missing, too large, a pipe or device, or something
    else."""
    try:
        value = regular.read_json(path, MAX_JSON_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(str(path), "is missing", "copy or download the whole checkpoint again") from error
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", "copy or download the file again") from error
    except ValueError as error:
        raise ConfigError(str(path), f"is not JSON ({error})", "copy or download the file again") from error
    if not isinstance(value, dict):
        raise ConfigError(str(path), "is not a JSON object", "copy or download the file again")
    return value


def config_file(folder: Path, component: str) -> Path:
    """Where a component has its configuration."""
    names = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}
    name = "tokenizer_config.json" if component.startswith("tokenizer") else "config.json"
    return folder / component / names.get(component, name)


def read_index(folder: Path) -> Index:
    """What `model_index.json` names; ConfigError for pipelines of no known family and for classes not allowed."""
    if not (folder / INDEX).is_file():
        raise ConfigError(str(folder), "is not a diffusers directory (no model_index.json)", _convert_hint(folder))
    index = read_json(folder / INDEX)
    where, kind = str(folder / INDEX), index.get("_class_name")
    if not isinstance(kind, str) or kind not in FAMILIES:
        what = f"is for {kind!r}, not for Stable Diffusion 1, 2, XL or 3, DiT, nor EDM or flow matching in pixels"
        raise ConfigError(where, what, f"give a directory for {', '.join(family.pipelines[0] for family in ALL)}")
    family = FAMILIES[kind]
    present = {
        name for name, value in index.items() if isinstance(value, list) and _is_named(where, family, name, value)
    }
    for name, part in family.parts.items():
        needed = part.required if name not in present else part.kind in ("model", "tokenizer", "scheduler")
        if needed and part.kind != "ignored" and (name not in present or not (folder / name).is_dir()):
            raise ConfigError(str(folder / name), "is missing", "copy or download the whole checkpoint again")
    used = {name for name in present if family.parts[name].kind != "ignored"}
    settings = {name: index[name] for name in family.settings if name in index}
    return Index(kind, family, frozenset(name for name in used if (folder / name).is_dir()), settings)


def _is_named(where: str, family: Family, name: str, value: list[Any]) -> bool:
    """Whether an entry names a class; ConfigError where it is none that the family allows."""
    if len(value) == 2 and value[1] is None:
        return False
    allowed = family.parts[name].classes if name in family.parts else ()
    if len(value) != 2 or value[0] not in LIBRARIES or value[1] not in allowed:
        what = f"names {'.'.join(map(str, value))} as {name}: custom or unknown code is never loaded"
        raise ConfigError(where, what, f"use a plain {family.name} checkpoint")
    return True


def refuse_code(folder: Path, components: frozenset[str]) -> None:
    """Refuse pipes, devices, Python files and `auto_map` entries in the folders that are used (ConfigError); code would
    not run anyway."""
    for name in sorted(components):
        odd = regular.irregular(folder / name)
        if odd is not None:
            raise ConfigError(str(odd), "is not a regular file", "copy or download the whole checkpoint again")
        for path in sorted((folder / name).iterdir()):
            if path.suffix == ".py":
                raise ConfigError(str(path), "is code in a checkpoint", "remove it: custom code is never run")
            if path.suffix == ".json" and path.stem.endswith("config") and "auto_map" in read_json(path):
                raise ConfigError(str(path), "asks for custom code (auto_map)", "use a plain checkpoint")


def find_weights(folder: Path, component: str) -> Weights:
    """The safetensors of a component: the plain ones first, else a variant; ConfigError where there are none."""
    place, stem = folder / component, STEMS[component]
    for variant in VARIANTS:
        middle = f".{variant}" if variant else ""
        single = place / f"{stem}{middle}.safetensors"
        if single.exists():
            return Weights(variant, (single,), None)
        index = place / f"{stem}.safetensors.index{middle}.json"
        if index.exists():
            return Weights(variant, _shards(index), index)
    pickled = sorted(path.name for path in place.iterdir() if path.suffix in PICKLED)
    if pickled:
        what = f"only has pickled weights ({pickled[0]}), which can run code when they are opened"
        raise ConfigError(str(place), what, _CONVERT)
    raise ConfigError(str(place), f"has no weights ({stem}.safetensors)", "copy or download the whole checkpoint again")


def tokenizer_files(folder: Path, component: str = "tokenizer") -> tuple[Path, ...]:
    """The tokenizer's files, either `tokenizer.json` or `vocab.json` with `merges.txt`; ConfigError where some are
    missing."""
    place, config = folder / component, config_file(folder, component)
    whole, bpe = place / "tokenizer.json", (place / "vocab.json", place / "merges.txt")
    parts = (whole,) if whole.exists() or component == "tokenizer_3" else bpe  # T5's has no vocab.json
    extra = (place / "special_tokens_map.json", place / "added_tokens.json")
    files = (config, *parts, *(path for path in extra if path.exists()))
    for path in files:
        try:
            regular.check(path, MAX_TOKENIZER_BYTES)
        except FileNotFoundError:
            raise ConfigError(str(path), "is missing", "copy or download the whole checkpoint again") from None
        except OSError as error:
            raise ConfigError(str(path), f"cannot be used ({error.strerror})", "copy or download it again") from None
    return files


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(str(index), "has no weight_map", "copy or download the file again")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                str(index), f"names {name!r}, which is no safetensors file beside it", "use a plain checkpoint"
            )
    return tuple(index.parent / name for name in names)


def snapshot(root: Path, name: str) -> Path | None:
    """The newest snapshot that has the file `name`, where `root` is a repository in the Hub's cache."""
    found = [path.parent for path in root.glob(f"snapshots/*/{name}")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def conversion(path: Path) -> str:
    """How a checkpoint in one file becomes a diffusers directory, with the pipeline that its own tensors are for."""
    pipelines = ["StableDiffusionPipeline"]
    if path.suffix == ".safetensors":
        try:
            names = read_header(path)
        except ConfigError as error:
            return error.fix
        marks = (
            ("joint_blocks.", "StableDiffusion3Pipeline"),
            ("conditioner.embedders.1.", "StableDiffusionXLPipeline"),
        )
        pipelines = [pipeline for mark, pipeline in marks if any(mark in name for name in names)] or pipelines
        if not any(".diffusion_model." in name or "cond_stage_model." in name for name in names):
            return (
                f"{path.name} is no whole checkpoint: give a directory that "
                "StableDiffusionPipeline.save_pretrained has written"
            )
    else:
        pipelines.append("or StableDiffusionXLPipeline")
    return (
        f"convert {path.name} where there is a network: "
        f"{' '.join(pipelines)}.from_single_file({str(path)!r}).save_pretrained(NEW)"
    )


def _convert_hint(folder: Path) -> str:
    children = sorted(path.parent for path in folder.glob("*/model_index.json"))
    inner = snapshot(folder, INDEX) or next(iter(children), None)
    if inner is not None:
        return f"name {inner}"
    for path in sorted(folder.iterdir()):
        if path.suffix in (*PICKLED, ".safetensors"):
            return conversion(path)
    return "give a directory that StableDiffusionPipeline.save_pretrained has written"


def read_labels(value: Any, classes: int) -> dict[int, str] | None:
    """The `id2label` of a model index, without what is no class; ConfigError where it is not numbers and names."""
    if not value:
        return None
    try:
        labels = {int(number): name for number, name in value.items()}
    except (AttributeError, TypeError, ValueError):
        labels = {0: None}
    if not all(isinstance(name, str) for name in labels.values()):
        raise ConfigError("model_index.json", "has an id2label that is not a table of numbers and names", "correct it")
    return {number: name for number, name in labels.items() if 0 <= number < classes}
