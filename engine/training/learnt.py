"""Whether a generator has learnt the conditions that it is to draw with: image features among its text, and no
condition at all."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.diffusion import hub
from engine.errors import ConfigError, DataError
from engine.spec import RunSpec
from engine.storage.store import open_store

MARKER = "mimeo.json"  # beside what mimeo has trained: what made it


class _Training(BaseModel):
    """What is read of a training's settings; a training that drops the image feature each time teaches nothing of
    it."""

    model_config = ConfigDict(extra="ignore")
    visual_token: str = "own"
    drop_condition: float = 1.0
    drop_image: float = 1.0

    @property
    def teaches(self) -> bool:
        return self.visual_token != "none" and max(self.drop_condition, self.drop_image) < 1


class _Pixel(_Training):
    features: bool = False

    @property
    def teaches(self) -> bool:
        return self.features and super().teaches


class _Pretrain(BaseModel):
    model_config = ConfigDict(extra="ignore")
    unet: _Training | None = None
    pixel: _Pixel | None = None


class _MadeFrom(BaseModel):
    model_config = ConfigDict(extra="ignore")
    pretrain: _Pretrain = _Pretrain()


class _Marker(BaseModel):
    """Markers of before `visual_token` say what the trainings were."""

    model_config = ConfigDict(extra="ignore")
    visual_token: bool | None = None
    made_from: _MadeFrom = _MadeFrom()
    match: _Training | None = None

    @property
    def reads_features(self) -> bool:
        trainings = (self.match, self.made_from.pretrain.unet, self.made_from.pretrain.pixel)
        found = any(training is not None and training.teaches for training in trainings)
        return found if self.visual_token is None else self.visual_token


def check(spec: RunSpec) -> None:
    """Refuse, without torch, to draw with conditions that the generator was never trained with (ConfigError)."""
    asked = spec.generate
    if asked.visual_token != "none" and not reads_features(spec):
        what = f"is {asked.visual_token}, and the generator has never learnt to read image features"
        fix = "set it to none, or fine-tune the generator with a match section (its visual_token own)"
        raise ConfigError("generate.visual_token", what, fix)
    kind = spec.pretrain.kind
    guided = asked.guidance_scale > 1 and asked.guidance == "cfg"
    if spec.model.checkpoint is None and kind != "dit" and guided:
        key = "drop_image" if asked.guidance_on == "image" else "drop_condition"
        if getattr(spec.pretrain.trained, key) == 0:
            what = f"leads away from a generator without its conditions, and pretrain.{kind}.{key} 0 trains none"
            raise ConfigError("generate.guidance_scale", what, "raise that, or set guidance_scale to 1")


def reads_features(spec: RunSpec) -> bool:
    """Whether the generator that the recipe draws with was trained with image features in the place of a text token.

    By the recipe's own trainings, by what lies beside its checkpoint and its LoRA, or since the recipe says so.
    DataError where that file is broken, ConfigError where the checkpoint cannot be found.
    """
    match, pretrain, model = spec.match, spec.pretrain, spec.model
    if model.visual_token or (match is not None and _Training(**match.model_dump()).teaches):
        return True
    if model.checkpoint is None:
        if pretrain.kind == "pixel":
            return _Pixel(**pretrain.pixel.model_dump()).teaches
        return pretrain.kind == "unet" and _Training(**pretrain.unet.model_dump()).teaches
    base = model.checkpoint if "://" in model.checkpoint else str(hub.locate(model.checkpoint, model.revision))
    return _carries(base) or (model.lora is not None and _carries(model.lora.rpartition("/")[0]))


def _carries(folder: str) -> bool:
    """Whether the marker of a model's folder says so; that of a fine-tune lay above it first, as in match/model."""
    places = [folder, *([folder.removesuffix("/model")] if folder.endswith("/model") else [])]
    return any(_says(place) for place in places)


def _says(folder: str) -> bool:
    try:
        return _Marker.model_validate_json(open_store(folder).read(MARKER)).reads_features
    except FileNotFoundError:
        return False
    except ValidationError:
        raise DataError(f"{folder}/{MARKER}", "is not what mimeo writes beside a model", "restore it") from None
