"""Conditions that a generator never learnt: what it carries says so, and recipes that ask for more are refused in one
line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine import spec as specs
from engine.errors import ConfigError, DataError
from engine.spec import RunSpec, identity, validate
from engine.storage.claim import claim
from engine.storage.store import open_store
from engine.study.ablation_arms import drawn
from engine.training import learnt
from engine.training.matching.matching_precheck import FOLDER, MARKER, WEIGHTS
from pipelines.cli import execute
from pipelines.context import RECIPES, open_run
from tests.support import outputs
from tests.support.buckets import upload
from tests.support.matching import Parts, match_spec
from tests.support.outputs import Output, digits_spec
from tests.support.trained import Trained, trained_run

NEVER = r"generate\.visual_token: is own, and the generator has never learnt to read image features; set it to none"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Trained:
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody says anything of: all that this check opens of a checkpoint."""
    folder = tmp_path_factory.mktemp("released") / "model"
    folder.mkdir()
    return folder


def of(checkpoint: Path | str, generate: dict[str, Any] | None = None, **sections: Any) -> RunSpec:
    return digits_spec(Path(), generate, **{"model": {"checkpoint": str(checkpoint)}, **sections})


@pytest.mark.parametrize(
    ("sections", "learns"),
    [
        ({}, False),
        ({"match": {}}, True),
        ({"match": {"adapter": "full"}}, True),
        ({"match": {"visual_token": "none"}}, False),
        ({"match": {"drop_image": 1.0}}, False),
        ({"match": {"drop_condition": 1.0}}, False),
    ],
)
def test_a_released_checkpoint_learns_by_a_fine_tune_alone(
    released: Path, sections: dict[str, Any], learns: bool
) -> None:
    for generate in ({}, {"visual_token": "class_mean"}):
        spec = of(released, generate, **sections)
        assert learnt.reads_features(spec) == learns
        if learns:
            learnt.check(spec)
        else:
            with pytest.raises(ConfigError, match="has never learnt to read image features"):
                learnt.check(spec)
    learnt.check(of(released, {"visual_token": "none"}, **sections))


def test_a_recipe_can_say_that_something_else_has_trained_it(released: Path) -> None:
    learnt.check(of(released, model={"checkpoint": str(released), "visual_token": True}))
    plain, said = of(released), of(released, model={"checkpoint": str(released), "visual_token": True})
    assert "visual_token" not in identity(plain)["model"]
    assert identity(said)["model"]["visual_token"] is True


@pytest.mark.parametrize(
    ("unet", "generate", "says"),
    [
        ({}, {}, None),
        ({"drop_image": 1.0}, {}, r"generate\.visual_token: is own"),
        ({"drop_image": 1.0}, {"visual_token": "none"}, None),
        ({"drop_condition": 0}, {}, r"generate\.guidance_scale: .*drop_condition 0"),
        ({"drop_condition": 0}, {"guidance_scale": 1.0}, None),
        ({"drop_condition": 0}, {"guidance_on": "image"}, None),
        ({"drop_image": 0}, {"guidance_on": "image"}, r"generate\.guidance_scale: .*drop_image 0"),
    ],
)
def test_a_closed_set_generator_learns_what_its_training_shows(
    unet: dict[str, Any], generate: dict[str, Any], says: str | None
) -> None:
    spec = of("", generate, model={}, pretrain={"unet": unet})
    if says is None:
        learnt.check(spec)
    else:
        with pytest.raises(ConfigError, match=says):
            learnt.check(spec)


def test_a_generator_that_was_trained_here_says_so_wherever_it_lies(trained: Trained, tmp_path: Path) -> None:
    learnt.check(of(trained.model))
    copy = tmp_path / "moved"
    shutil.copytree(trained.model, copy)
    learnt.check(of(copy))
    facts = json.loads((copy / "mimeo.json").read_text())
    facts["made_from"]["pretrain"]["unet"]["drop_image"] = 1.0  # as the same training without tokens writes it
    (copy / "mimeo.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=NEVER):
        learnt.check(of(copy))
    (copy / "mimeo.json").write_text("[1]")
    with pytest.raises(DataError, match="is not what mimeo writes beside a model") as caught:
        learnt.check(of(copy))
    assert "\n" not in str(caught.value)


def test_on_an_object_store_too(trained: Trained, tmp_path: Path, s3_url: str) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(trained.model / "mimeo.json", tmp_path / "model")
    learnt.check(of(upload(tmp_path / "model", f"{s3_url}/made")))
    (tmp_path / "model/mimeo.json").rename(tmp_path / "model/model_index.json")
    with pytest.raises(ConfigError, match=NEVER):
        learnt.check(of(upload(tmp_path / "model", f"{s3_url}/released")))


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("token", ["own", "none"])
def test_a_fine_tune_says_what_it_has_learnt(
    ready: Output, released: Path, tmp_path: Path, adapter: str, token: str
) -> None:
    parts = Parts(ready, match_spec(ready.spec, adapter=adapter, visual_token=token, steps=2))
    assert parts.matching(tmp_path, inputs=parts.cache()).run()["done"]
    made = {"checkpoint": str(tmp_path / FOLDER)}
    if adapter == "lora":
        made = {"checkpoint": str(released), "lora": str(tmp_path / FOLDER / WEIGHTS)}
    spec = of("", model=made)
    assert learnt.reads_features(spec) == (token == "own")
    (tmp_path / FOLDER / "mimeo.json").unlink()  # an output of before has the one above alone
    assert learnt.reads_features(spec) == (token == "own")
    store = open_store(str(tmp_path))
    facts = {key: value for key, value in json.loads(store.read(MARKER)).items() if key != "visual_token"}
    store.replace(MARKER, json.dumps(facts).encode())
    assert learnt.reads_features(spec) == (token == "own")


def test_packaged_recipes_ask_for_what_their_generators_have_learnt(released: Path) -> None:
    found = 0
    for path in sorted(RECIPES.glob("*.yaml")):
        spec = specs.load(path)
        found += spec.model.checkpoint is not None
        if spec.model.checkpoint is not None:
            spec = spec.model_copy(update={"model": spec.model.model_copy(update={"checkpoint": str(released)})})
        for trial in drawn(spec).values() if spec.ablation else [spec]:
            learnt.check(trial)
    assert found == 2


def test_the_command_refuses_before_anything_is_claimed_and_old_outputs_go_on(
    ready: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    data = ready.spec.model_dump(mode="json")
    recipe.write_text(json.dumps(data))
    assert execute(["generate", str(recipe), "-o", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "generate.visual_token: is own" in line
    assert not list((tmp_path / "out").glob("**/*"))
    assert (
        execute(
            [
                "study",
                "ablation",
                str(recipe),
                "-o",
                "out",
                "--set",
                "ablation.arms={base: {}, lora: {match.steps: 2}}",
                "--set",
                "split.validation=20",
            ]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "ablation.arms.base: generate.visual_token: is own" in line, line
    claim(open_store(str(tmp_path / "old")), validate(data))
    with open_run(str(recipe), None, "old", "generate") as run:
        assert run.spec == validate(data)
