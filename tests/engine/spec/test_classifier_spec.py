"""The `train` section: what is refused in one line, lengths in epochs and steps, Real-Fake's settings, and the
documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import spec as specs
from engine.errors import ConfigError
from engine.spec.classifier import TrainSpec

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("train", "error"),
    [
        ({"share": -0.1}, "train.share must be proportional, or the share of synthetic images"),
        ({"share": 1.5}, "train.share must be proportional"),
        ({"multiples": [-1]}, "train.multiples"),
        ({"multiples": []}, "train.multiples"),
        ({"arms": ["both"]}, "train.arms"),
        ({"arms": ["few_shot"]}, "arms with few_shot need shots"),
        ({"arms": ["curve"]}, "arm curve needs curve"),
        ({"steps": 5, "epochs": 3}, "two names of one length"),
        ({"schedule": "milestones"}, "needs milestones"),
        ({"crop_scale": [0.5, 0.2]}, "crop_scale"),
        ({"weights": "model.pt"}, "must be a .safetensors file"),
        ({"modle": "cnn"}, "unknown key train.modle; did you mean model?"),
    ],
)
def test_bad_settings_are_one_line(train: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs.validate({"name": "x", "source": {"kind": "digits"}, "train": train})
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_count_passes_over_the_real_images() -> None:
    spec = TrainSpec(epochs=200.0, batch=512, warmup=5.0)
    assert spec.total_steps(9469) == -(-200 * 9469 // 512)
    assert spec.in_steps(50, 9469) == round(50 * 9469 / 512)
    assert TrainSpec(steps=70).total_steps(9469) == 70
    assert TrainSpec(steps=70).in_steps(50, 9469) == 50
    assert TrainSpec().total_steps(9469) == 300


def test_real_fakes_recipe_is_the_papers() -> None:
    train = specs.load(ROOT / "pipelines/recipes/train_realfake.yaml").train
    assert train is not None
    found = train.model_dump(
        include={
            "model",
            "optimizer",
            "momentum",
            "weight_decay",
            "lr",
            "batch",
            "epochs",
            "milestones",
            "milestone_factor",
            "warmup",
            "schedule",
            "label_smoothing",
            "crop",
            "crop_scale",
            "size",
            "flip",
            "color_jitter",
            "dtype",
            "mixup",
            "rand_augment",
            "ema",
        }
    )
    assert found == {
        "model": "resnet50",
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "lr": 0.1,
        "batch": 512,
        "epochs": 200,
        "milestones": (50, 100, 150),
        "milestone_factor": 0.2,
        "warmup": 5,
        "schedule": "milestones",
        "label_smoothing": 0.1,
        "crop": "resized",
        "crop_scale": (0.08, 1.0),
        "size": 224,
        "flip": True,
        "color_jitter": 0.4,
        "dtype": "float16",
        "mixup": 0,
        "rand_augment": 0,
        "ema": 0,
    }


def test_a_train_section_is_no_part_of_the_identity_and_is_documented() -> None:
    plain = {"name": "x", "source": {"kind": "digits"}}
    with_train = specs.validate(plain | {"train": {"steps": 7}})
    assert specs.spec_hash(specs.validate(plain)) == specs.spec_hash(with_train)
    text = (ROOT / "docs/recipes.md").read_text()
    assert not [key for key in TrainSpec.model_fields if f"`train.{key}`" not in text]
