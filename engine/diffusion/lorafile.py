"""What a LoRA file adds to each module, by its own keys, alphas and metadata: alpha / rank x up x down, or it is
refused."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from engine.diffusion import weights
from engine.diffusion.families.adapters import Content
from engine.diffusion.families.family import Family
from engine.errors import ConfigError

if TYPE_CHECKING:
    import torch

OTHER = "use a LoRA that was trained on this checkpoint's family"
_AGAIN = "copy or train the file again"
_PLAIN = "use LoRA without DoRA, LoHa or LoKr"
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_REPEATED = re.compile(r"(?:.*\.)?(?:transformer_blocks|attentions|resnets|downsamplers|upsamplers|layers)\.\d+\.")
_ALPHA = ".alpha"
_UNSUPPORTED = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_mid")
# Of peft's configuration: what changes neither a module's change nor which modules have one.
_NEUTRAL = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
        *("layers_pattern", "ensure_weight_tying", "eva_config", "runtime_config"),
    )
)
_KEPT_BASE = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # the others change the base weights, which no file holds
_Name = Annotated[str, StringConstraints(pattern=r"^\^?[\w.]+$")]


class _Metadata(BaseModel):
    """Peft's configuration of one component, as diffusers writes it into a file; other options must be off."""

    model_config = ConfigDict(extra="allow")

    r: Annotated[int, Field(gt=0)] = 8
    lora_alpha: float = 8
    rank_pattern: dict[_Name, int] = Field(default_factory=dict)
    alpha_pattern: dict[_Name, float] = Field(default_factory=dict)
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: Any = None
    layers_to_transform: Any = None
    init_lora_weights: bool | str | None = True
    use_rslora: bool = False
    bias: str = "none"

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The modules that it names; None where they hang on a pattern or on exceptions."""
        plain = isinstance(self.target_modules, tuple) and not (self.exclude_modules or self.layers_to_transform)
        return self.target_modules if plain and isinstance(self.target_modules, tuple) else None

    def unsupported(self) -> str | None:
        """An option under which a module's change is not alpha / rank x up x down."""
        if self.init_lora_weights not in _KEPT_BASE:
            return f"init_lora_weights: {self.init_lora_weights}, which changes the base weights too"
        on = [key for key, value in (self.model_extra or {}).items() if value and key not in _NEUTRAL]
        return on[0] if on else (f"bias: {self.bias}" if self.bias != "none" else None)

    def scale(self, module: str, rank: int) -> float | None:
        """The factor of a module's product; None where it has another rank than the configuration says."""
        if _by_pattern(self.rank_pattern, module, self.r) != rank:
            return None
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class Change:
    """What is added to a module's weight: `scale` x `up` (out, rank, ...) x `down` (rank, in, ...)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])


def read(path: Path, family: Family, models: Mapping[str, Any]) -> dict[str, dict[str, Change]]:
    """The change of every module that a file names, by component and module; `models` may be without numbers.

    Raises ConfigError, one line, where a key, an alpha or the metadata cannot be followed exactly.
    """
    content = _content(path, family, models)
    strangers = [key for key in content.tensors if key.partition(".")[0] not in models]
    if strangers:
        what = f"has {len(strangers)} of {len(content.tensors)} keys for other models, such as {strangers[0]}"
        raise ConfigError(str(path), what, OTHER)
    return {part: _Component(path, part, model, content).changes() for part, model in models.items()}


def _content(path: Path, family: Family, models: Mapping[str, Any]) -> Content:
    names = weights.read_header(path)
    unsupported = next((key for key in names if any(mark in key for mark in _UNSUPPORTED)), None)
    if unsupported:
        raise ConfigError(str(path), f"is not a plain LoRA (it has {unsupported})", _PLAIN)
    try:
        content = family.adapters.read(path, models)
    except Exception as error:  # the converters of other trainers' formats raise whatever they stumble over
        what = f"is not a {family.name} LoRA that diffusers can read ({' '.join(str(error).split())[:160]})"
        raise ConfigError(str(path), what, OTHER) from error
    count = len(content.tensors) + len(content.alphas)
    if count != len(names):
        raise ConfigError(str(path), f"has {len(names)} keys, of which diffusers reads {count}", OTHER)
    if "dora_wd" in (arguments := _trainer_arguments(path)) and str(arguments["dora_wd"]).lower() not in (
        "false",
        "none",
    ):
        raise ConfigError(
            str(path), "is not a plain LoRA (its metadata say dora_wd, its keys have no dora_scale)", _PLAIN
        )
    return content


def _trainer_arguments(path: Path) -> Mapping[str, object]:
    """The network's arguments that kohya-ss notes in a file, {} without them."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get("ss_network_args")
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _Component:
    """One component of a file against its model."""

    def __init__(self, path: Path, part: str, model: Any, content: Content) -> None:
        from torch import nn

        self._path, self._part, self._content = path, part, content
        self._text_model = hasattr(model, "text_model")
        kinds = (nn.Linear, nn.Conv2d)
        self._shapes = {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}
        self._metadata = self._own_metadata()

    def changes(self) -> dict[str, Change]:
        """The change of each module, every key of the file used."""
        sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        alphas = self._alphas()
        for key, tensor in self._matrices().items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise self._refuse(f"has the key {key} of {self._part}, which is not LoRA's", OTHER)
            sides[match["module"]][match["side"]] = tensor
        unknown = sorted(name for name in {*sides, *alphas} if name not in self._shapes)
        if unknown:
            what = (
                f"is for another family: the checkpoint's {self._part} lacks {len(unknown)} of "
                f"{len(sides)} modules, such as {unknown[0]}"
            )
            raise self._refuse(what, OTHER)
        for name in {**sides, **alphas}:
            if len(sides[name]) < 2:
                raise self._refuse(f"has only one of the two matrices of {self._part}.{name}: keys are missing", _AGAIN)
            self._check_shape(name, sides[name]["A"], sides[name]["B"])
        self._check_coverage(sides)
        return {
            name: Change(pair["A"], pair["B"], self._scale(name, pair["A"].shape[0], alphas.get(name)))
            for name, pair in sides.items()
        }

    def _matrices(self) -> dict[str, torch.Tensor]:
        """The component's matrices by peft's names."""
        tensors = self._content.tensors
        keys = [key for key in tensors if key.startswith(f"{self._part}.") and not key.endswith(_ALPHA)]
        named = {self._peft_name(key): tensors[key] for key in keys}
        if len(named) != len(keys):
            raise self._refuse(f"names a module of the {self._part} twice", _AGAIN)
        return named

    def _alphas(self) -> dict[str, float]:
        """Alphas by module: the keys `<module>.alpha`, and what the converters took out of a file of kohya-ss."""
        prefix, tensors, found = f"{self._part}.", self._content.tensors, {}
        for key in tensors:
            if key.startswith(prefix) and key.endswith(_ALPHA):
                if tensors[key].numel() != 1:
                    raise self._refuse(f"has {key} of shape {tuple(tensors[key].shape)}, not a number", _AGAIN)
                found[self._own_name(key.removeprefix(prefix).removesuffix(_ALPHA))] = float(tensors[key])
        # Diffusers names an alpha by the key of its down matrix up to ".lora.", as that is before peft's names.
        downs = {key.split(".lora.")[0] + _ALPHA: key for key in tensors if ".down." in key}
        for key, alpha in self._content.alphas.items():
            if key.startswith(prefix):
                match = _KEY.fullmatch(self._peft_name(downs[key]) if key in downs else "")
                if match is None:
                    raise self._refuse(f"has an alpha of {key.removesuffix(_ALPHA)}, which has no matrices", _AGAIN)
                found[match["module"]] = float(alpha)
        return found

    def _peft_name(self, key: str) -> str:
        """A key of the reader's by peft's names, converted as diffusers' loaders do."""
        from diffusers.utils import state_dict_utils as convert

        found = {key.removeprefix(f"{self._part}."): None}
        if self._part.startswith("text_encoder"):
            for dialect in (convert.StateDictType.DIFFUSERS_OLD, convert.StateDictType.DIFFUSERS):
                found = convert.convert_state_dict_to_peft(found, dialect)
        else:
            found = convert.convert_unet_state_dict_to_peft(found)
        return self._own_name(next(iter(found)))

    def _own_name(self, name: str) -> str:
        """Without the level that CLIP's text encoder had before transformers 5."""
        return name if self._text_model else name.removeprefix("text_model.")

    def _scale(self, module: str, rank: int, alpha: float | None) -> float:
        if alpha is None and self._metadata is None:
            return 1.0
        by_metadata = self._metadata.scale(module, rank) if self._metadata else None
        if self._metadata is not None and by_metadata is None:
            what = f"gives {self._part}.{module} rank {rank}, but its own metadata asks for another one"
            raise self._refuse(what, _AGAIN)
        scale = by_metadata if alpha is None else alpha / rank
        if by_metadata is not None and scale != by_metadata:
            raise self._refuse(f"gives {self._part}.{module} one alpha by its keys and another by its metadata", _AGAIN)
        if not scale or not math.isfinite(scale):
            what = f"gives {self._part}.{module} alpha {alpha if alpha is not None else scale:g}"
            fix = "some tools take 0 for no change, others for alpha = rank: write the alpha that is meant"
            raise self._refuse(what, fix)
        return scale

    def _own_metadata(self) -> _Metadata | None:
        prefix = f"{self._part}."
        found = {
            key.removeprefix(prefix): value for key, value in self._content.metadata.items() if key.startswith(prefix)
        }
        if not found:
            return None
        try:
            metadata = _Metadata.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))[:80]
            raise self._refuse(
                f"has metadata that peft cannot have written ({where}: {first['msg']})", _AGAIN
            ) from None
        option = metadata.unsupported()
        if option:
            raise self._refuse(f"is not a plain LoRA (its metadata ask for {option})", _PLAIN)
        return metadata

    def _check_shape(self, name: str, down: torch.Tensor, up: torch.Tensor) -> None:
        """The module's weight is (out, in) of a linear layer, (out, in, height, width) of a convolution."""
        shape = self._shapes[name]
        rank, ends = up.shape[1] if up.ndim > 1 else 0, (1,) * (len(shape) - 2)
        if rank and tuple(down.shape) == (rank, *shape[1:]) and tuple(up.shape) == (shape[0], rank, *ends):
            return
        has, wants = (down.shape[1] if down.ndim > 1 else 0), shape[1]
        family = f" ({_WIDTHS[has]})" if has in _WIDTHS and name.endswith(("attn2.to_k", "attn2.to_v")) else ""
        sizes = f"reads width {has}{family}" if has != wants else f"has shapes {tuple(down.shape)}, {tuple(up.shape)}"
        raise self._refuse(f"does not fit: its {name} {sizes}, the checkpoint's weight is {shape}", OTHER)

    def _check_coverage(self, found: Iterable[str]) -> None:
        """Lost keys: metadata say which modules have a LoRA; without them each block that has any has the same kinds as
        the others."""
        found = set(found)
        targets = self._metadata.targets if self._metadata else None
        if targets is not None:
            named = {self._own_name(target) for target in targets}
            expected = {name for name in self._shapes if any(suffix in named for suffix in _suffixes(name))}
            extra = sorted(found - expected)
            if extra:
                raise self._refuse(f"changes {self._part}.{extra[0]}, which its own metadata does not name", _AGAIN)
        else:
            kinds, blocks = ({_split(name)[n] for name in found} for n in (1, 0))
            expected = {name for name in self._shapes if _split(name)[0] in blocks and _split(name)[1] in kinds}
        absent = sorted(expected - found)
        if absent:
            what = f"covers {len(found)} of {len(expected)} modules of the {self._part}: {absent[0]} is missing"
            raise self._refuse(what, f"keys were lost: {_AGAIN}")

    def _refuse(self, what: str, fix: str) -> ConfigError:
        return ConfigError(str(self._path), what, fix)


def _split(name: str) -> tuple[str, str]:
    """The block of a module, up to the last part of its name that is repeated, and its kind: what stands behind."""
    kind = _REPEATED.sub("", name)
    return name.removesuffix(kind), kind


def _suffixes(name: str) -> list[str]:
    """`a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """What peft's `rank_pattern` or `alpha_pattern` says: the first name that is the module's end, or with `^` all of
    it."""
    keys = {f"^{module}", *_suffixes(module)}
    return next((value for key, value in pattern.items() if key in keys), default)
