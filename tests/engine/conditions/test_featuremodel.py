"""Feature models are found and refused from files alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.conditions.featuremodel import NONE, FeatureModel, check_use, resolve
from engine.errors import ConfigError
from engine.spec import RunSpec
from engine.spec.recipe import FeatureSpec
from tests.support import clips


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    clip = clips.write_clip(root / "clip")
    clips.write_open_clip(root / "open_clip", clip)
    clips.write_vision(root / "vision", clip)
    return root


@pytest.fixture
def models(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "models"))


def run_spec(**generate: object) -> RunSpec:
    return RunSpec.model_validate({"name": "x", "source": {"kind": "digits"}, "generate": generate})


def open_clip(path: Path, model: str | None = None) -> FeatureModel:
    return resolve(FeatureSpec(backend="open_clip", path=str(path), model=model), None)


def transformers(path: Path) -> FeatureModel:
    return resolve(FeatureSpec(backend="transformers", path=str(path)), None)


def test_widths_and_text_towers(source: Path) -> None:
    whole, vision, other = (
        transformers(source / "clip"),
        resolve(FeatureSpec(), source / "vision"),
        open_clip(source / "open_clip"),
    )
    assert [model.dim for model in (whole, vision, other)] == [24, 24, 24]
    assert [model.has_text for model in (whole, vision, other)] == [True, False, True]
    assert resolve(FeatureSpec(), source).source == str(source / "clip")  # a checkpoint's clip/


def test_identity_is_the_content_and_not_the_place(source: Path, models: Path) -> None:
    assert transformers(models / "clip").digest == transformers(source / "clip").digest
    path = models / "clip" / "preprocessor_config.json"
    path.write_text(path.read_text() + "\n")
    assert transformers(models / "clip").digest != transformers(source / "clip").digest


def test_pickle_weights_are_refused(models: Path) -> None:
    (models / "clip" / "model.safetensors").rename(models / "clip" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle only \(pytorch_model.bin\)"):
        transformers(models / "clip")
    (models / "open_clip" / "open_clip_model.safetensors").rename(models / "open_clip" / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="would load a pickle file"):
        open_clip(models / "open_clip")
    for name in ("weights.pt", "weights.bin", "weights.npz"):
        (models / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match="is a pickle file"):
            open_clip(models / name, "ViT-B-32")


def test_a_pickle_that_open_clip_would_prefer_is_refused(models: Path) -> None:
    folder = models / "open_clip"
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    assert open_clip(folder).files[0] == folder / "model.safetensors"
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="would load a pickle file"):
        open_clip(folder)
    (folder / "model.safetensors").rename(folder / "open_clip_pytorch_model.safetensors")
    assert open_clip(folder).files[0].name == "open_clip_pytorch_model.safetensors"


def test_missing_and_broken(models: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        transformers(models / "nowhere")
    with pytest.raises(ConfigError, match="missing or not a whole safetensors file"):
        open_clip(models / "nowhere.safetensors", "ViT-B-32")
    (models / "clip" / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        transformers(models / "clip")
    (models / "clip" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        transformers(models / "clip")
    with pytest.raises(ConfigError, match="model of type 'clip_vision_model'"):
        transformers(models / "vision" / "image_encoder")


LIES = {
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "nested": lambda path: path.write_text("[" * 200_000 + "]" * 200_000),
    "a giant": lambda path: path.write_bytes(b'{"a": "' + b"x" * 17_000_000 + b'"}'),
    "layers": lambda path: path.write_text(
        path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 10000000')
    ),
    "many layers": lambda path: path.write_text(
        path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 9000')
    ),
    "width as text": lambda path: path.write_text(
        path.read_text().replace('"hidden_size": 32', '"hidden_size": "wide"')
    ),
    "width": lambda path: path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 3200000000')),
}


@pytest.mark.parametrize("lie", LIES)
def test_configurations_that_lie_are_refused_at_once(models: Path, lie: str) -> None:
    path = models / "clip" / "config.json"
    LIES[lie](path)
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        transformers(models / "clip")
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_any_file_is_refused(models: Path, name: str) -> None:
    path = models / "clip" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError):
        transformers(models / "clip")


def test_open_clip_files_that_lie_are_refused(models: Path) -> None:
    weights = models / "pipe.safetensors"
    os.mkfifo(weights)
    with pytest.raises(ConfigError, match="not a regular file"):
        open_clip(weights, "ViT-B-32")
    path = models / "open_clip" / "open_clip_config.json"
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 10000000'))
    with pytest.raises(ConfigError, match="asks for layers 1e"):
        open_clip(models / "open_clip")


def test_missing_shard_of_an_index(models: Path) -> None:
    folder = models / "clip"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ConfigError, match=r"model-00002-of-00002.safetensors is missing"):
        transformers(folder)


def test_unknown_open_clip_names_get_a_near_match(source: Path) -> None:
    weights = source / "open_clip" / "open_clip_model.safetensors"
    with pytest.raises(ConfigError, match=r"no model ViT-L-41; did you mean .*ViT-L-14"):
        open_clip(weights, "ViT-L-41")
    for name in ("hf-hub:org/model", "local-dir:/x"):
        with pytest.raises(ConfigError, match="leave model out"):
            open_clip(weights, name)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("text_cfg", {"hf_model_name": "roberta-base"}, "comes from the Hub"),
        ("vision_cfg", {"timm_model_name": "hf-hub:evil/model"}, "comes from the Hub"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, "code of its own"),
    ],
)
def test_open_clip_folders_that_reach_out(models: Path, section: str, values: dict[str, object], message: str) -> None:
    path = models / "open_clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][section] |= values
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        open_clip(models / "open_clip")


def test_checkpoint_without_an_image_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no image_encoder; set conditions\.features"):
        resolve(FeatureSpec(), tmp_path)
    assert resolve(FeatureSpec(), tmp_path, needed=False) == NONE


def test_width_must_be_one_that_has_a_place(source: Path) -> None:
    model = transformers(source / "clip")
    with pytest.raises(ConfigError) as caught:
        check_use(run_spec(), model, [768])
    assert str(caught.value) == (
        "conditions.features: image features are 24 wide, the checkpoint's text tokens 768; "
        "use a CLIP of projection width 768, or generate.visual_token: none"
    )
    check_use(run_spec(), model, {24: (76, 0), 768: (76, 24)})
    check_use(run_spec(visual_token="none"), model, [768])
    check_use(run_spec(), model, None)
    with pytest.raises(ConfigError, match=r"768 or 1280; use a CLIP of projection width 768 or 1280"):
        check_use(run_spec(), model, [1280, 768])
    with pytest.raises(ConfigError, match=r"classes only.*; set generate\.visual_token to none"):
        check_use(run_spec(), model, {})


def test_clip_scores_need_the_text_tower(source: Path) -> None:
    scored = run_spec(gate={"min_clip_score": 0.1})
    check_use(scored, transformers(source / "clip"), [24])
    with pytest.raises(ConfigError, match=r"min_clip_score: is set, and the feature model has no text tower"):
        check_use(scored, resolve(FeatureSpec(), source / "vision"), [24])


def test_checks_import_no_model_code(source: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.conditions.featuremodel import resolve;"
        "from engine.spec.recipe import FeatureSpec;"
        f"resolve(FeatureSpec(), Path({str(source)!r}));"
        f"resolve(FeatureSpec(backend='open_clip', path={str(source / 'open_clip')!r}), None);"
        "bad = {'torch', 'ray', 'transformers', 'open_clip', 'diffusers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
