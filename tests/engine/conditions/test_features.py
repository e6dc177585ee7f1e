"""CLIP features against direct calls of transformers and open_clip, and of one against the other."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

from engine.conditions.featuremodel import FeatureModel, resolve
from engine.conditions.features import FeatureExtractor, clip_scores, tower
from engine.errors import ConfigError
from engine.spec.recipe import FeatureSpec
from tests.support import clips

TEXTS = ["photo of a cat", "", "7", "words that go on for much longer than the tower can read"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> CLIPModel:
    model = clips.write_clip(folder / "clip")
    clips.write_open_clip(folder / "open_clip", model)
    clips.write_vision(folder / "vision", model)
    return model


def images(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def transformers_model(folder: Path) -> FeatureModel:
    return resolve(FeatureSpec(backend="transformers", path=str(folder / "clip")), None)


def open_clip_model(folder: Path) -> FeatureModel:
    return resolve(FeatureSpec(backend="open_clip", path=str(folder / "open_clip")), None)


def test_images_equal_direct_transformers_calls(folder: Path, clip: CLIPModel) -> None:
    pixels = images(70, 40, 28)
    processor = CLIPImageProcessor.from_pretrained(folder / "clip")
    with torch.no_grad():
        expected = [
            clip.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output[0].numpy()
            for image in pixels
        ]
    found = FeatureExtractor(transformers_model(folder)).images(pixels)
    assert found.dtype == np.float32
    assert found.shape == (70, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(found, axis=1).std() > 1e-3  # projected, not normalised


@pytest.mark.usefixtures("clip")
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", ["clip", "vision", "open_clip"])
def test_the_differentiable_tower_sees_what_the_extractor_sees(folder: Path, kind: str, size: int) -> None:
    """At the tower's own size to rounding; where it has to resize, about (no rounding to 8 bits in between)."""
    models = {"clip": transformers_model, "open_clip": open_clip_model}
    model = models[kind](folder) if kind in models else resolve(FeatureSpec(), folder / "vision")
    pixels = images(5, size, size)
    pixels = pixels // 4 + 96  # resizing by bicubic kernels overshoots at the ends, where 8 bits are cut off
    expected = FeatureExtractor(model).images(pixels)
    given = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    given.requires_grad_()
    found = tower(model, "cpu")(given)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-4 if size == 16 else 0.05)
    found.sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0


def test_texts_equal_direct_transformers_calls(folder: Path, clip: CLIPModel) -> None:
    tokenizer = clips.clip_tokenizer()
    with torch.no_grad():
        expected = [
            clip.get_text_features(**tokenizer(text, truncation=True, max_length=clips.LENGTH, return_tensors="pt"))
            .pooler_output[0]
            .numpy()
            for text in TEXTS
        ]
    found = FeatureExtractor(transformers_model(folder)).texts(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("clip")
def test_open_clip_and_transformers_agree(folder: Path) -> None:
    one, other = FeatureExtractor(transformers_model(folder)), FeatureExtractor(open_clip_model(folder))
    np.testing.assert_allclose(one.images(images(9)), other.images(images(9)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.texts(TEXTS), other.texts(TEXTS), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("clip")
def test_open_clip_uses_its_own_preprocessing(folder: Path) -> None:
    name = f"local-dir:{folder / 'open_clip'}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    pixels = images(5, 50, 31)
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([prepare(Image.fromarray(image)) for image in pixels]))
    np.testing.assert_allclose(FeatureExtractor(open_clip_model(folder)).images(pixels), expected, rtol=1e-4, atol=1e-5)


def test_open_clip_by_name_and_weights_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    direct = open_clip.create_model("ViT-S-32-alt").eval()
    weights = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in direct.state_dict().items()}, weights)
    beside = {
        "model_cfg": open_clip.get_model_config("ViT-S-32-alt") | {"quick_gelu": False},
        "preprocess_cfg": {"size": [224, 224]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    model = resolve(FeatureSpec(backend="open_clip", model="ViT-S-32-alt", path=str(weights)), None)
    extractor = FeatureExtractor(model)
    assert (model.dim, model.files) == (256, (weights,))
    with torch.no_grad():
        expected = direct.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(["a cat"])).numpy()
    np.testing.assert_allclose(extractor.texts(["a cat"]), expected, rtol=1e-4, atol=1e-5)
    assert extractor.images(images(2, 300, 260)).shape == (2, 256)


@pytest.mark.parametrize(
    ("model_cfg", "preprocess_cfg", "message"),
    [
        ({"quick_gelu": True}, {}, "model_cfg.quick_gelu"),
        ({}, {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "preprocess_cfg.mean, preprocess_cfg.std"),
        ({}, {"size": 256}, "preprocess_cfg.size"),
        ({"embed_dim": 128}, {"interpolation": "bilinear"}, "model_cfg.embed_dim, preprocess_cfg.interpolation"),
    ],
)
def test_open_clip_weights_under_another_config_are_refused_and_right_by_the_folder(
    tmp_path: Path, model_cfg: dict, preprocess_cfg: dict, message: str
) -> None:
    """The name's own configuration gives other features than the one beside the weights; the hint gives the right
    ones."""
    config = open_clip.get_model_config("ViT-S-32-alt") | model_cfg
    beside = {"model_cfg": config, "preprocess_cfg": preprocess_cfg}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    torch.manual_seed(0)
    direct, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    weights = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in direct.state_dict().items()}, weights)
    with pytest.raises(ConfigError) as caught:
        resolve(FeatureSpec(backend="open_clip", model="ViT-S-32-alt", path=str(weights)), None)
    assert message in str(caught.value)
    assert caught.value.fix == f"leave conditions.features.model out and set conditions.features.path to {tmp_path}"
    pixels = images(2, 40, 60)
    with torch.no_grad():
        expected = direct.eval().encode_image(torch.stack([prepare(Image.fromarray(image)) for image in pixels]))
    found = FeatureExtractor(resolve(FeatureSpec(backend="open_clip", path=str(tmp_path)), None)).images(pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_open_clip_weights_without_a_config_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    spec = FeatureSpec(backend="open_clip", model="ViT-L-14", path=str(tmp_path / "weights.safetensors"))
    with pytest.raises(ConfigError, match=r"no open_clip_config\.json beside it.*copy the open_clip_config\.json"):
        resolve(spec, None)


@pytest.mark.usefixtures("clip")
def test_a_clip_that_transformers_5_has_saved_is_prepared_as_its_own_processor_says(
    tmp_path: Path, folder: Path
) -> None:
    """`CLIPProcessor.save_pretrained` writes `processor_config.json` alone; where both files lie, transformers reads
    that one."""
    saved = tmp_path / "clip"
    shutil.copytree(folder / "clip", saved)
    own = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]
    )
    CLIPProcessor(own, clips.clip_tokenizer()).save_pretrained(saved)
    spec = FeatureSpec(backend="transformers", path=str(saved))
    found = [resolve(spec, None)]
    (saved / "preprocessor_config.json").unlink()
    found.append(resolve(spec, None))
    pixels = images(2, 33, 20)
    network = CLIPModel.from_pretrained(saved)
    with torch.no_grad():
        inputs = own(images=list(pixels), return_tensors="pt")
        expected = network.get_image_features(**inputs).pooler_output.numpy()
    for model in found:
        assert saved / "processor_config.json" in model.files
        np.testing.assert_allclose(FeatureExtractor(model).images(pixels), expected, rtol=1e-5, atol=1e-6)
    assert found[0].digest == found[1].digest


def test_image_encoder_of_a_checkpoint_equals_the_whole_clip(folder: Path, clip: CLIPModel) -> None:
    vision = FeatureExtractor(resolve(FeatureSpec(), folder / "vision"))
    whole = FeatureExtractor(transformers_model(folder))
    np.testing.assert_array_equal(vision.images(images(7, 33, 20)), whole.images(images(7, 33, 20)))
    assert not vision.has_text
    with pytest.raises(ConfigError, match="no text tower"):
        vision.texts(["a"])


def test_clip_folder_of_a_checkpoint_takes_its_tokenizer_from_beside(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "clip", tokenizer=False)
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    clips.write_processor(tmp_path / "feature_extractor", 16)
    assert not resolve(FeatureSpec(), tmp_path).has_text
    clips.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    extractor = FeatureExtractor(resolve(FeatureSpec(), tmp_path))
    assert extractor.images(images(1)).shape == extractor.texts(["a"]).shape == (1, 24)


@pytest.mark.usefixtures("clip")
def test_batches_cut_nothing_and_no_image_is_no_feature(folder: Path) -> None:
    extractor = FeatureExtractor(transformers_model(folder))
    pixels = images(130)
    np.testing.assert_array_equal(extractor.images(pixels)[64:128], extractor.images(pixels[64:128]))
    assert extractor.images(pixels[:0]).shape == (0, 24)
    assert extractor.texts([]).shape == (0, 24)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    clips.write_clip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["visual_projection.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="not finite"):
        FeatureExtractor(resolve(FeatureSpec(backend="transformers", path=str(tmp_path)), None))


def test_weights_that_lack_a_tensor(tmp_path: Path) -> None:
    clips.write_clip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights \(visual_projection.weight\)"):
        FeatureExtractor(resolve(FeatureSpec(backend="transformers", path=str(tmp_path)), None))


def test_open_clip_weights_that_do_not_fit(tmp_path: Path) -> None:
    model = clips.write_clip(tmp_path / "clip")
    clips.write_open_clip(tmp_path / "open", model)
    save_file({f"x{n}": torch.zeros(1) for n in range(9)}, tmp_path / "open" / "open_clip_model.safetensors")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        FeatureExtractor(resolve(FeatureSpec(backend="open_clip", path=str(tmp_path / "open")), None))


def test_clip_scores_are_cosines() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=(5, 8)), generator.normal(size=(5, 8))
    expected = torch.nn.functional.cosine_similarity(torch.tensor(one), torch.tensor(other)).numpy()
    np.testing.assert_allclose(clip_scores(one, other), expected, rtol=1e-6)
    assert clip_scores(np.zeros((1, 8)), other[:1]) == 0
