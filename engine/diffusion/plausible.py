"""Whether a model's configuration asks for no more than its weights can fill, before a class of any library reads
it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.diffusion.weights import Tensor
from engine.errors import ConfigError

LARGEST = 2**20  # of what counts or measures something: the longest vocabularies are a quarter of it
LONGEST = 50_000  # entries of a list or a mapping
DEEPEST = 16
SIDE = 4096  # of an image, in pixels or latents
PATCHES = 2**18  # of a table of positions
_MEASURE = re.compile(
    r"^num_\w+$|(?:^|_)(?:size|dim|channels|layers|heads|embeddings|groups|embeds|per_block|edge|height|width)$"
)
_SIDE = re.compile(r"(?:sample|image|crop)_size$|^(?:\w+_edge|height|width)$")
_REPEATED = re.compile(r"^(?!max_)(?:\w+_)?layers$|layers_per_block$")  # max_window_layers makes none
_BLOCKS = re.compile(r"_block_types$|^block_out_channels$")
_FIX = "copy or download the whole model again"


def numbers(where: Path, config: Mapping[str, Any]) -> None:
    """Refuse numbers, lists and nesting beyond what any model has, and text in the place of a number (ConfigError)."""
    for key, value in _walk(where, config, 0):
        measure = bool(_MEASURE.search(key))
        if (measure and isinstance(value, str)) or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(str(where), f"has {key} {str(value)[:40]!r}, which is no number", _FIX)
        if not measure or not isinstance(value, int | float):
            continue
        if not 0 <= value <= (SIDE if _SIDE.search(key) else LARGEST):
            raise ConfigError(str(where), f"asks for {key} {value:.6g}, which no model has", _FIX)


def repeats(where: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse more layers than the weights have tensors, as each layer has one at least, and giant tables
    (ConfigError)."""
    found: dict[str, int] = {}
    for key, value in _walk(where, config, 0):
        if _REPEATED.search(key) and isinstance(value, int | float):
            found[key] = max(found.get(key, 0), int(value))
    in_blocks = [max(1, value) for key, value in found.items() if key.endswith("layers_per_block")]
    blocks = [len(value) for key, value in config.items() if _BLOCKS.search(key) and isinstance(value, list | tuple)]
    found["layers in blocks"] = math.prod(in_blocks) * max(blocks, default=1)
    for key, value in found.items():
        if value > len(tensors):
            what = f"asks for {value} {key}, and the weights have {len(tensors)} tensors"
            raise ConfigError(str(where), what, _FIX)
    patch, side, table = (config.get(key) for key in ("patch_size", "sample_size", "pos_embed_max_size"))
    rows = [side // patch] if isinstance(side, int) and isinstance(patch, int) and patch else []
    rows += [table] if isinstance(table, int) else []
    if max(rows, default=0) ** 2 > PATCHES:
        raise ConfigError(
            str(where), f"asks for a table of {max(rows)} x {max(rows)} positions, which no model has", _FIX
        )


def fills(where: Path, model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a model (without numbers) that has more of them than its weights hold, tied ones counted twice
    (ConfigError)."""
    wanted, held = sum(weight.numel() for weight in model.parameters()), sum(tensor.size for tensor in tensors.values())
    if wanted > 2 * held:
        raise ConfigError(str(where), f"asks for {wanted} numbers, and the weights hold {held}", _FIX)


def _walk(where: Path, value: Any, depth: int, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with the name of the innermost key that it stands under."""
    if depth > DEEPEST:
        raise ConfigError(str(where), "is nested deeper than any configuration", _FIX)
    if not isinstance(value, Mapping | list | tuple):
        yield key, value
        return
    if len(value) > LONGEST:
        raise ConfigError(str(where), f"has {len(value)} entries under {key or 'its top'}, which no model has", _FIX)
    for name, inner in value.items() if isinstance(value, Mapping) else ((key, item) for item in value):
        yield from _walk(where, inner, depth + 1, str(name))
