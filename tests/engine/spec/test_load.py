"""Recipes: overrides, near matches, paths relative to the recipe, and the identity of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from engine import spec as specs
from engine.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
LATENT = QUICKSTART.with_name("latent.yaml")


@pytest.mark.parametrize("recipe", sorted((ROOT / "pipelines" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_recipes_are_valid(recipe: Path) -> None:
    name = specs.load(recipe).name
    assert name == recipe.stem or recipe.stem.startswith("evaluate_") or recipe.stem == "train_digits"


@pytest.mark.parametrize("name", ["evaluate_digits", "train_digits"])
def test_recipes_that_ask_of_the_quickstarts_output_have_its_identity(name: str) -> None:
    asked = specs.load(QUICKSTART.with_name(f"{name}.yaml"))
    assert specs.spec_hash(asked) == specs.spec_hash(specs.load(QUICKSTART))


def test_numbers_as_people_write_them() -> None:
    assert specs.load(QUICKSTART, ["generate.count=1e9"]).generate.count == 10**9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("generate.cout=5", "did you mean count?"),
        ("sede=3", "did you mean seed?"),
        ("source.pth=x", "unknown key source.pth"),
        ("pretrain.unet.stepps=3", "did you mean steps?"),
        ("generate.count=-1", "greater than or equal to 1"),
        ("generate.count=0", "greater than or equal to 1"),
        ("generate.count=10.5", "whole number"),
        ("generate.count=true", "whole number"),
        ("generate.count=[1]", "whole number"),
        ("generate.count=1e13", "less than or equal to"),
        ("generate.guidance_scale=.nan", "finite"),
        ("generate.guidance_scale=.inf", "finite"),
        ("generate.strength=0.5", "set pairing"),
        ("generate={guidance_on: image, visual_token: none}", "guidance_on image drops the visual token"),
        ("conditions.caption={kind: model}", "kind model needs path"),
        ("conditions.caption={kind: blip, path: x, instruction: y}", "kind blip takes no instruction"),
        ("conditions.caption={kind: model, path: x, instruction: ' '}", "instruction"),
        ("generate.guidance_interval=[0.5, 0.5]", "must end after it begins"),
        ("generate.guidance_interval=[0.5, 1.5]", "guidance_interval.1 must be less than or equal to 1"),
        ("generate.cache_interval=0", "greater than or equal to 1"),
        ("resources.batch_size=most", "whole number from 1 to 4096, or auto"),
        ("resources.batch_size=5000", "whole number from 1 to 4096, or auto"),
        ("resources.batch_size=2.5", "whole number from 1 to 4096, or auto"),
        ("resources.fast.compile=max", "'off', 'default' or 'reduce-overhead'"),
        ("resources.fast.compil=off", "did you mean compile?"),
        ("resources.fast.attention=fast", "'auto', 'flash', 'cudnn', 'efficient' or 'math'"),
        ("resources.fast.decode_batch=0", "greater than or equal to 1"),
        ("generate.guidance_on=none", "'both', 'text' or 'image'"),
        ("generate.format=gif", "'png', 'jpg' or 'webp'"),
        ("split.train=1.5", "fraction between 0 and 1"),
        ("source.kind=imagenet", "digits, folder"),
        ("conditions.prompt='{x.__class__}'", "{class} and {caption} only"),
        ("conditions.prompt=''", "must not be empty"),
        ("name=../../x", "name"),
        ("seed=-1", "seed"),
        ("images.size=28", "multiple of 8"),
        ("version=2", "version"),
        ("generate.count", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
    ],
)
def test_faults_are_one_clear_line(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs.load(QUICKSTART, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_overrides_apply_in_order_and_make_sections() -> None:
    spec = specs.load(QUICKSTART, ["pretrain.unet.steps=5", "pretrain.unet.steps=6", "resources.actors=2"])
    assert (spec.pretrain.unet.steps, spec.resources.actors) == (6, 2)


def test_identity_is_the_hash_of_all_but_resources_and_tolerance() -> None:
    spec = specs.load(LATENT)
    data = spec.model_dump(mode="json")
    del data["resources"], data["generate"]["gate"]["max_quarantined"]
    for asked in ("train", "evaluate", "search", "equivalence", "deliberate", "ablation", "worth"):
        assert data.pop(asked) is None
    assert (data["judge"].pop("mixing"), data["split"].pop("near_duplicates")) == ("equal", "together")
    assert data["judge"].pop("controls") == ["duplicated", "photocopy", "reconstructed", "augmented"]
    assert data["judge"].pop("metric") == "accuracy"
    assert data["judge"].pop("tune") is False
    assert data.pop("match") is None  # these came later: no part of the identity while they are not used
    assert data["model"].pop("visual_token") is False
    assert data["conditions"]["caption"].pop("instruction") is None
    assert data["conditions"]["features"].pop("normalise") is False
    assert (data["generate"].pop("guidance_on"), data["generate"].pop("quality_suffix")) == ("both", "")
    assert (data["generate"].pop("guidance_interval"), data["generate"].pop("cache_interval")) == ([0.0, 1.0], 1)
    assert data["pretrain"].pop("denoiser") == "unet"
    assert data["pretrain"].pop("encoder") is None
    assert data["model"].pop("class_ids") == {}
    assert (data["generate"].pop("guidance"), data["pretrain"].pop("space")) == ("cfg", "latent")
    assert (data["pretrain"].pop("views")["probability"], data["pretrain"].pop("held_out")) == (0.0, 0.0)
    del data["pretrain"]["dit"], data["pretrain"]["pixel"]
    by_hand = hashlib.sha256(
        json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
    assert specs.spec_hash(spec) == by_hand
    assert specs.spec_hash(specs.load(LATENT, ["resources.actors=4", "resources.batch_size=1"])) == by_hand
    fast = "resources.fast={channels_last: on, fuse_qkv: true, compile: default, attention: math, decode_batch: 4}"
    assert specs.spec_hash(specs.load(LATENT, [fast, "resources.batch_size=auto"])) == by_hand
    assert specs.spec_hash(specs.load(LATENT, ["generate.gate.max_quarantined=0.5"])) == by_hand
    for other in (
        "generate.guidance_scale=3",
        "generate.guidance_on=text",
        "generate.guidance_interval=[0.2, 0.8]",
        "generate.cache_interval=2",
        "generate.quality_suffix=', best quality'",
        "generate.guidance=auto",
        "pretrain.views={probability: 0.5}",
        "pretrain.held_out=0.1",
        "conditions.features.normalise=true",
    ):
        assert specs.spec_hash(specs.load(LATENT, [other])) != by_hand


def test_identity_of_older_sources_is_for_ever() -> None:
    """Keys that a kind of source got later change nothing at their default; set, they are part of the identity."""
    known = {
        "folder": "1bf05d929d6f986e8be0f14782e50d33d4944282ac09cd07308cd6289d663fed",
        "parquet": "67e0dd49a4705d3d66dd89302e10f1f295255ab6c94f792f7c2cf920a65412fa",
    }
    for kind, expected in known.items():
        recipe = {"name": "t", "source": {"kind": kind, "path": "/x"}}
        assert specs.spec_hash(specs.validate(recipe)) == expected
        recipe["source"]["class_names"] = ["a", "b"]
        assert specs.spec_hash(specs.validate(recipe)) != expected


@pytest.mark.parametrize(
    ("recipe", "changes", "identity", "key"),
    [
        (QUICKSTART, [], "d59bb42e42945d81f4dde92fc3c1e123602378f3809cdd6017999bd6c32ecb8a", "49e0f1829ceee3d9"),
        (
            LATENT,  # was the quickstart
            ["name=quickstart"],
            "e44e01c452ef9d4d1cf12bf23005d928ffcbbda298bacbf4d8a038b89e4ddb28",
            "84591fa22c0ddf2a",
        ),
    ],
    ids=["quickstart", "quickstart before pixels"],
)
def test_identity_of_the_packaged_quickstart_is_for_ever(
    recipe: Path, changes: list[str], identity: str, key: str
) -> None:
    """Outputs that were begun with it stay valid: a new key is added to `ADDED` with the value that changes nothing."""
    spec = specs.load(recipe, changes)
    assert specs.spec_hash(spec) == identity
    assert f"{specs.sample_key(spec):016x}" == key


def test_kept_features_and_graphs_exclude_each_other() -> None:
    kept = ["generate.cache_interval=2", "resources.fast.compile=reduce-overhead"]
    with pytest.raises(ConfigError, match=r"cache_interval keeps features .* set compile to default or off"):
        specs.load(LATENT, kept)
    assert specs.load(LATENT, [kept[0], "resources.fast.compile=default"]).generate.cache_interval == 2


def test_a_transformer_is_another_run_and_refuses_what_it_cannot_be_told() -> None:
    dit = ["pretrain.denoiser=dit", "generate.visual_token=none"]
    hashes = {specs.spec_hash(specs.load(LATENT, more)) for more in (dit, dit[1:], [*dit, "pretrain.dit.steps=9"])}
    assert len(hashes) == 3
    for wrong in (dit[:1], [*dit, "generate.negative_prompt=bold"]):
        with pytest.raises(ConfigError, match=r"told classes only: set generate\.visual_token to none"):
            specs.load(LATENT, wrong)


def test_sample_key_ignores_length_and_place_but_not_content() -> None:
    key = specs.sample_key(specs.load(QUICKSTART))
    assert key == specs.sample_key(
        specs.load(QUICKSTART, ["generate.count=7", "generate.shard_size=3", "judge.seeds=9"])
    )
    assert key != specs.sample_key(specs.load(QUICKSTART, ["seed=1"]))
    assert key != specs.sample_key(specs.load(QUICKSTART, ["generate.guidance_scale=3"]))
    assert 0 <= key < 2**64


def test_spelling_of_the_recipe_does_not_matter(tmp_path: Path) -> None:
    text = (
        "generate: {count: 1.0e3, shard_size: 100, scheduler: dpmsolver++, "
        "num_inference_steps: 12}\nsource: {kind: digits}\nname: a\nimages: {size: 8}\n"
    )
    one, two = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one.write_text(text)
    two.write_text("\n".join(reversed(text.replace("1.0e3", "1000").splitlines())))
    assert specs.spec_hash(specs.load(one)) == specs.spec_hash(specs.load(two))


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    recipe = tmp_path / "recipes" / "a.yaml"
    recipe.write_text("name: a\nsource: {kind: folder, path: ../photos}\nmodel: {checkpoint: someone/some-model}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = specs.load(recipe)
    assert spec.source.path == str(tmp_path / "photos")  # type: ignore[union-attr]
    assert spec.model.checkpoint == "someone/some-model"
    other = specs.load(recipe, ["source.path=here"])
    assert other.source.path == str(tmp_path / "elsewhere" / "here")  # type: ignore[union-attr]


def test_specs_are_frozen() -> None:
    spec = specs.load(QUICKSTART)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3  # type: ignore[misc]


def test_differences_name_the_keys() -> None:
    old, new = (
        specs.identity(specs.load(QUICKSTART)),
        specs.identity(specs.load(QUICKSTART, ["generate.count=5", "seed=1"])),
    )
    assert specs.differences(old, new) == ["generate.count: 3000 -> 5", "seed: 0 -> 1"]


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError):
        specs.canonical_json({"a": float("nan")})
