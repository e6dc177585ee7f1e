"""Checks of a local model directory that need no GPU and import no model code: configuration, weights, identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import regular
from engine.diffusion import plausible
from engine.diffusion.layout import MAX_JSON_BYTES, snapshot
from engine.diffusion.weights import FETCH, POINTER, is_pointer, read_headers
from engine.errors import ConfigError, StorageError
from engine.regular import Json
from engine.storage import origin

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".npy")
TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
CONVERT = "convert them to safetensors (save_pretrained writes it)"


def config(folder: Path, key: str, name: str = "config.json") -> Json:
    """The model's configuration; ConfigError (naming the recipe's `key`) when it is missing, broken or asks for own
    code."""
    if not folder.is_dir():
        raise ConfigError(key, f"{folder} is not a directory", "give a local model directory")
    path = folder / name
    odd = regular.irregular(folder)
    if odd is not None:
        raise ConfigError(key, f"{odd} is not a regular file", "copy the model again")
    try:
        data = regular.read_json(path, MAX_JSON_BYTES)
    except FileNotFoundError:
        inner = snapshot(folder, name)
        fix = f"name {inner}" if inner else "give a directory that save_pretrained has written"
        raise ConfigError(key, f"{folder} has no {name}", fix) from None
    except (OSError, ValueError) as error:
        raise ConfigError(key, f"{path} cannot be read ({error})", "copy the model again") from None
    if not isinstance(data, dict):
        raise ConfigError(key, f"{path} is not a mapping", "copy the model again")
    if "auto_map" in data:
        raise ConfigError(key, f"{path} asks for code of its own (auto_map)", "use a model class that transformers has")
    return data


def weights(folder: Path, key: str) -> list[Path]:
    """The safetensors files of a directory, one or the shards that its index names; ConfigError when missing, pickled
    or broken."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        names = config(folder, key, index.name).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ConfigError(key, f"{index} has no weight_map", "copy the model again")
        files = [folder / Path(str(name)).name for name in sorted(set(map(str, names.values())))]
    else:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickled:
            raise ConfigError(key, f"{folder} has its weights as pickle only ({pickled[0]})", CONVERT)
        raise ConfigError(key, f"{folder} has no {single.name}", "copy the model again")
    for file in files:
        check_safetensors(file, key)
    return files


def check_safetensors(file: Path, key: str) -> None:
    """Raise ConfigError unless the file is whole: header readable and its length as the header says."""
    from safetensors import SafetensorError, safe_open

    if file.suffix in PICKLES:
        raise ConfigError(key, f"{file} is a pickle file", CONVERT)
    try:
        regular.check(file)
        if is_pointer(file):
            raise ConfigError(key, f"{file} {POINTER}", FETCH)
        with safe_open(file, framework="numpy") as opened:
            empty = not list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            key, f"{file} is missing or not a whole safetensors file ({error})", "copy it again"
        ) from None
    if empty:
        raise ConfigError(key, f"{file} holds no tensor", "copy it again")


def check_sizes(where: Path, config: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Refuse a configuration that asks for more than the weights in `files` can fill (ConfigError)."""
    plausible.numbers(where, config)
    plausible.repeats(where, config, read_headers(files))


def tokenizer_files(folder: Path, key: str) -> list[Path]:
    """The tokenizer's files in a folder, [] without one; ConfigError when its configuration asks for own code."""
    if not any((folder / name).is_file() for name in TOKENIZERS[:3]):
        return []
    if (folder / "tokenizer_config.json").is_file():
        config(folder, key, "tokenizer_config.json")
    return [folder / name for name in TOKENIZERS if (folder / name).is_file()]


def digest(files: Iterable[Path]) -> str:
    """Identity (SHA-256, hex) of files by name and content, wherever they lie."""
    return _identity({file: origin.sha256(file) for file in files})


@contextmanager
def unchanged(files: Iterable[Path], expected: str) -> Iterator[None]:
    """Around the loading of a model: its files have this `digest` ("": it is not known), and stay what they are
    (StorageError)."""
    found = {file: origin.sha256(file, noted=True) for file in files}
    if expected and _identity(found) != expected:
        where = str(next(iter(found)).parent)
        raise StorageError(where, "is not the model that the run began with", "put it back, or start a new output")
    with origin.unchanged(found):
        yield


def _identity(digests: Mapping[Path, str]) -> str:
    lines = sorted(f"{file.name}\0{value}\n" for file, value in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
