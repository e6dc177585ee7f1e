"""Class numbers by name: synonyms, spelling, WordNet ids and numbers; what has no number or several is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline

from engine import spec as specs
from engine.conditions.table import Conditions
from engine.diffusion import classes
from engine.diffusion.checkpoint import Checkpoint, inspect, load
from engine.diffusion.sampler import Request, Sampler
from engine.diffusion.schedulers import make
from engine.errors import ConfigError
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.spec.recipe import GenerateSpec, ModelSpec
from engine.training.matching.data import Prompts
from pipelines.cli import execute
from tests.support.families import SIZE, write_family
from tests.support.images import plain_folder
from tests.support.outputs import digits_spec

IMAGENET = {
    0: "tench, Tinca tinca",
    1: "goldfish, Carassius auratus",
    134: "crane",
    217: "English springer, English springer spaniel",
    517: "crane",
    566: "French horn, horn",
    999: "toilet tissue, toilet paper, bathroom tissue",
    1000: "nothing",
}


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A DiT that counts as ImageNet does."""
    folder = write_family(tmp_path_factory.mktemp("classes") / "dit", "dit")
    return relabelled(folder, IMAGENET)


def relabelled(folder: Path, labels: Any) -> Checkpoint:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index.pop("id2label", None)
    path.write_text(json.dumps(index if labels is None else index | {"id2label": labels}))
    return inspect(ModelSpec(checkpoint=str(folder)), SIZE)


def found(checkpoint: Checkpoint, *names: str, **ids: int) -> tuple[int, ...] | None:
    return classes.numbers(checkpoint, names, ModelSpec(checkpoint="x", class_ids=ids))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("TENCH", 0),
        ("english_springer", 217),
        ("English-Springer", 217),
        ("English springer, English springer spaniel", 217),
        ("horn", 566),
        ("toilet_paper", 999),
        ("n01440764", 0),  # tench's WordNet id
        ("n02102040", 217),
        ("217", 217),
        ("007", 7),
    ],
)
def test_a_class_is_found_by_its_name(dit: Checkpoint, name: str, number: int) -> None:
    assert found(dit, name) == (number,)


def test_places_do_not_count(dit: Checkpoint) -> None:
    assert found(dit, "springer", "tench", springer=217) == (217, 0)
    assert found(dit, "tench", "English springer") == (0, 217)


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (
            ("tinch",),
            {},
            "the checkpoint has no class 'tinch'; its names are like tench: rename the class, or give its number",
        ),
        (("nothing",), {}, "has no class 'nothing'"),
        (("crane",), {}, r"'crane' is the name of 2 classes of the checkpoint: 134, 517; say which one"),
        (("n02012849",), {}, "no class 'n02012849'"),
        (("1000",), {}, "1000 is no class of the checkpoint, which has 0 to 999"),
        (("tench",), {"tench": 1000}, "1000 is no class of the checkpoint"),
        (("tench",), {"tensh": 0}, "'tensh' is no class of the training images; did you mean tench?"),
        (("tench", "Tinca tinca"), {}, "'tench' and 'Tinca tinca' are both class 0 of the checkpoint"),
        (("tench", "fish"), {"fish": 0}, "'tench' and 'fish' are both class 0"),
    ],
)
def test_what_has_no_number_of_its_own_is_refused_in_one_line(
    dit: Checkpoint, names: tuple[str, ...], ids: dict[str, int], message: str
) -> None:
    if names == ("n02012849",):  # counts in another order: ImageNet's place 134 is not its crane
        dit = dataclasses.replace(dit, class_labels={**(dit.class_labels or {}), 134: "canoe"})
    with pytest.raises(ConfigError, match=message) as caught:
        found(dit, *names, **ids)
    assert "\n" not in str(caught.value)


def test_without_labels_numbers_are_asked_for(dit: Checkpoint, tmp_path: Path) -> None:
    bare = relabelled(Path(shutil.copytree(dit.place, tmp_path / "dit")), None)
    with pytest.raises(
        ConfigError, match=r"does not say which class 'tench' is; give its number, as in model.class_ids"
    ):
        found(bare, "tench")
    assert found(bare, "tench", "5", tench=3) == (3, 5)
    assert bare.digest != dit.digest  # what the names say is part of what is drawn


@pytest.mark.parametrize("labels", [{"a": "tench"}, {"0": 7}, "tench"])
def test_labels_that_are_no_table_are_refused(dit: Checkpoint, tmp_path: Path, labels: Any) -> None:
    with pytest.raises(ConfigError, match="id2label that is not a table"):
        relabelled(Path(shutil.copytree(dit.place, tmp_path / "dit")), labels)


def test_a_generator_that_is_trained_here_keeps_its_own_names(dit: Checkpoint) -> None:
    own = dataclasses.replace(dit, class_labels={0: "A, b", 1: "a", 2: "b"})
    assert classes.numbers(own, ["a", "b", "A, b"], ModelSpec()) == (1, 2, 0)
    older = dataclasses.replace(dit, class_labels=None)
    assert classes.numbers(older, ["x", "y"], ModelSpec()) == (0, 1)
    with pytest.raises(ConfigError, match="knows 1000 classes, the training images have 1001"):
        classes.numbers(older, ["x"] * 1001, ModelSpec())


def test_who_reads_text_has_no_numbers(dit: Checkpoint) -> None:
    text = dataclasses.replace(dit, classes=None)
    assert found(text, "tench") is None
    with pytest.raises(ConfigError, match="reads text and knows no classes; leave it out"):
        found(text, "tench", tench=0)


def test_recipes_write_numbers_as_names_and_ask_for_a_checkpoint() -> None:
    assert ModelSpec(checkpoint="x", class_ids={3: 217, "b": 1.0}).class_ids == {"3": 217, "b": 1}
    for wrong in ({"a": -1}, {"a": True}, {"a": 1.5}):
        with pytest.raises(ValueError, match="class_ids"):
            ModelSpec(checkpoint="x", class_ids=wrong)
    with pytest.raises(ValueError, match="class_ids are for a checkpoint"):
        ModelSpec(class_ids={"a": 1})


def test_generation_and_the_fine_tune_tell_the_checkpoints_numbers(dit: Checkpoint) -> None:
    names = ("english_springer", "tench")
    spec = digits_spec(Path(dit.place), {"visual_token": "none", "count": 8})
    labels = np.array([0, 1, 1, 0], np.int32)
    prompts = tuple(names[label] for label in labels)
    features = np.zeros((4, 0), np.float32)
    conditions = Conditions(("a", "b", "c", "d"), labels, ("",) * 4, prompts, features, features[:2], names)
    numbered = dataclasses.replace(conditions, class_numbers=classes.numbers(dit, names, spec.model))
    plan = Plan(spec, labels, names)
    rows, facts = plan.rows(0, 8), plan.facts(0, 8, conditions.keys, conditions.prompts)
    made = Requests(spec, numbered).make(rows, facts, range(8), range(8), None, None)  # type: ignore[arg-type]
    assert [(request.prompt, request.label) for request in made] == [
        (fact["class"], {"english_springer": 217, "tench": 0}[fact["class"]]) for fact in facts
    ]
    assert Prompts.of(numbered).distinct == (("english_springer", 217), ("tench", 0))
    assert numbered.digest() == conditions.digest()


def test_tench_is_drawn_as_stock_diffusers_draws_tench(dit: Checkpoint) -> None:
    stock: Any = DiTPipeline.from_pretrained(dit.place)
    stock.scheduler = make("ddim", stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    asked = stock.get_label_ids(["English springer", "tench"])
    expected = stock(asked, generator=generators, num_inference_steps=3, guidance_scale=4.0, output_type="np").images
    numbers = found(dit, "english_springer", "tench")
    generate = GenerateSpec(scheduler="ddim", num_inference_steps=3, guidance_scale=4.0, visual_token="none")
    sampler = Sampler(load(dit, "cpu", "float32"), generate)
    assert numbers is not None
    drawn = sampler.draw([Request("", seed, label=number) for seed, number in zip((5, 6), numbers, strict=True)])
    pixels = np.stack([image.pixels for image in drawn if image.pixels is not None])
    assert np.abs(pixels.astype(float) - (expected * 255).round()).max() <= 1


def test_a_command_is_refused_before_ray_starts(
    dit: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found when the folders are listed: exit 2, one line with the near match, nothing claimed."""
    plain_folder(tmp_path / "photos", classes=("tench", "Englisch springer"), per_class=4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: fish\nsource: {{kind: folder, path: {tmp_path}/photos}}\nimages: {{size: 8}}\n"
        f"model: {{checkpoint: {dit.place}}}\ngenerate: {{scheduler: ddim, visual_token: none}}\n"
    )
    assert execute(["run", str(recipe), "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "no class 'Englisch springer'; its names are like english springer" in line
    assert not (tmp_path / "out" / "spec.yaml").exists()
    assert specs.load(recipe, ["model.class_ids={Englisch springer: 217}"]).model.class_ids == {
        "Englisch springer": 217
    }
