"""Captions of each family of models against direct transformers calls, on tiny models with real files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoProcessor

from engine.conditions.captionfamilies import FAMILIES
from engine.conditions.captionmodel import CaptionModel, precheck
from engine.errors import ConfigError
from engine.spec.recipe import CaptionSpec
from tests.support import captioners, clips

WRITERS = {
    "blip": clips.write_blip,
    "blip-2": clips.write_blip2,
    **{kind: lambda folder, kind=kind: captioners.write_qwen(folder, kind) for kind in captioners.QWENS},
    "florence2": captioners.write_florence,
}
LENGTH = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    for name, write in WRITERS.items():
        write(root / name)
    return {name: root / name for name in WRITERS}


def spec(folder: Path, kind: str = "model", **settings: Any) -> CaptionSpec:
    return CaptionSpec(kind=kind, path=str(folder), **{"max_new_tokens": LENGTH, **settings})


def images(count: int, height: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def captions(model: CaptionModel, pixels: Any) -> list[str]:
    return [said["caption"] for said in model(pixels)]


def by_hand(folder: Path, name: str, pixels: Any, asked: str) -> list[str]:
    """One image at a time, without padding, with prompts written out."""
    model = getattr(transformers, FAMILIES[name].model).from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    said = []
    for image in pixels:
        inputs = processor(images=image, return_tensors="pt", **({"text": asked} if asked else {}))
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, num_beams=1)[0]
        if name.startswith("qwen"):
            tokens = tokens[inputs["input_ids"].shape[1] :]
        text = processor.decode(tokens, skip_special_tokens=True).removeprefix("[DEC]")
        said.append(" ".join(text.split()))
    return said


def chat(instruction: str) -> str:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return f"<|im_start|>user\n{image}{instruction}<|im_end|>\n<|im_start|>assistant\n"


ASKED = {
    "blip": "",
    "blip-2": "",
    **{kind: chat("Describe this image in one short sentence.") for kind in captioners.QWENS},
    "florence2": "<CAPTION>",
}


def test_every_family_is_tested() -> None:
    assert set(WRITERS) == set(FAMILIES) == set(ASKED)


@pytest.mark.parametrize("name", WRITERS)
def test_captions_equal_direct_calls_one_by_one(folders: dict[str, Path], name: str) -> None:
    pixels = images(19)
    model = CaptionModel(spec(folders[name]))
    said = captions(model, pixels)
    assert said == by_hand(folders[name], name, pixels, ASKED[name])
    assert len(set(said)) > 1
    assert captions(model, pixels) == said
    assert captions(model, pixels[3:5]) == said[3:5]


@pytest.mark.parametrize("name", WRITERS)
def test_a_caption_does_not_depend_on_what_shares_its_batch(folders: dict[str, Path], name: str) -> None:
    """Images of many sizes, so that prompts of unequal length are padded where the model sees images at their own
    size."""
    sizes = [(40, 24), (64, 64), (32, 96), (24, 40), (64, 32), (48, 48)]
    pixels = [images(1, *size)[0] for size in sizes]
    model = CaptionModel(spec(folders[name]))
    together = captions(model, pixels)
    assert together == [captions(model, [image])[0] for image in pixels]
    assert together[::-1] == captions(model, pixels[::-1])


@pytest.mark.parametrize("name", captioners.QWENS)
def test_an_instruction_is_what_the_user_says(folders: dict[str, Path], name: str) -> None:
    pixels = images(4)
    said = captions(CaptionModel(spec(folders[name], instruction="What colour?")), pixels)
    assert said == by_hand(folders[name], name, pixels, chat("What colour?"))
    assert said != captions(CaptionModel(spec(folders[name])), pixels)


def test_an_instruction_is_florences_task(folders: dict[str, Path]) -> None:
    pixels, folder = images(8), folders["florence2"]
    said = captions(CaptionModel(spec(folder, instruction="<DETAILED_CAPTION>")), pixels)
    assert said == by_hand(folder, "florence2", pixels, "<DETAILED_CAPTION>")
    assert said != captions(CaptionModel(spec(folder)), pixels)


@pytest.mark.parametrize(
    ("name", "instruction", "says"),
    [
        ("florence2", "<OD>", "has no task '<OD>'; use one of <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>"),
        ("qwen2_vl", "See <|image_pad|>?", "has control tokens (<|); write it in plain words"),
        ("blip", "a photo of", "a model of type blip takes no instruction; leave it out"),
    ],
)
def test_instructions_that_a_model_cannot_follow(
    folders: dict[str, Path], name: str, instruction: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        precheck(spec(folders[name], instruction=instruction))
    assert says in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_cut_captions_are_those_that_never_end(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Ends become likely or impossible by the bias of the output layer alone, or as likely as the weights make them."""
    model = CaptionModel(spec(folders[name], max_new_tokens=3))
    head = model._model.get_output_embeddings() or model._model.text_decoder.get_output_embeddings()
    ends = sorted(model._ends)

    def shift(by: float) -> Any:
        def hook(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[..., ends] += by
            return out

        return head.register_forward_hook(hook)

    for by, cut in ((-1e4, True), (1e4, False)):
        handle = shift(by)
        assert [said["cut"] for said in model(images(3))] == [cut] * 3
        handle.remove()


def test_blip_is_the_same_restricted_to_blip_types(folders: dict[str, Path]) -> None:
    pixels = images(3)
    for name in ("blip", "blip-2"):
        model, blip = (CaptionModel(spec(folders[name], kind)) for kind in ("model", "blip"))
        assert model(pixels) == blip(pixels)
    with pytest.raises(ConfigError, match=r"holds a model of type 'florence2'; give .* of type blip or blip-2"):
        precheck(spec(folders["florence2"], "blip"))


def test_grey_images_are_captioned_like_their_rgb_form(folders: dict[str, Path]) -> None:
    grey = images(3)[..., 0]
    blip = CaptionModel(spec(folders["blip"]))
    assert blip(grey) == blip(np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("name", WRITERS)
def test_precheck_names_weights_tokenizer_and_template(folders: dict[str, Path], name: str) -> None:
    found = {path.name for path in precheck(spec(folders[name]))}
    assert found == {path.name for path in folders[name].iterdir()}


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conditions.caption.path: .*nowhere is not a directory"):
        precheck(spec(tmp_path / "nowhere"))


def broken(folders: dict[str, Path], tmp_path: Path, name: str = "blip") -> Path:
    return Path(shutil.copytree(folders[name], tmp_path / "broken"))


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_pickle_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle only \(pytorch_model.bin\).*safetensors"):
        precheck(spec(folder))


def test_truncated_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        precheck(spec(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model of type 'bert'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
    ],
)
def test_other_models(folders: dict[str, Path], tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = broken(folders, tmp_path)
    set_config(folder, **values)
    with pytest.raises(ConfigError, match=message):
        precheck(spec(folder))


def test_old_blip2_export(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path, "blip-2")
    set_config(folder, image_token_index=None)
    with pytest.raises(ConfigError, match="image_token_index"):
        precheck(spec(folder))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("processor_config.json", "no preprocessor"),
        ("tokenizer.json", "no tokenizer"),
        ("config.json", "no config.json"),
    ],
)
def test_missing_files(folders: dict[str, Path], tmp_path: Path, removed: str, message: str) -> None:
    folder = broken(folders, tmp_path)
    (folder / removed).unlink()
    with pytest.raises(ConfigError, match=message):
        precheck(spec(folder))


def test_weights_of_another_variant(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path)
    shutil.copy(folders["blip-2"] / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks weights|cannot be loaded"):
        CaptionModel(spec(folder))


@pytest.mark.parametrize("name", captioners.QWENS)
def test_a_chat_template_is_needed_wherever_it_stands(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = broken(folders, tmp_path, name)
    template = (folder / "chat_template.jinja").read_text()
    expected = captions(CaptionModel(spec(folder)), images(2))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"has no chat_template.jinja; copy"):
        precheck(spec(folder))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    assert captions(CaptionModel(spec(folder)), images(2)) == expected


def test_a_florence_without_rules_for_text(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = broken(folders, tmp_path, "florence2")
    path = folder / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor_config": None}))
    with pytest.raises(ConfigError, match="has no post_processor_config for plain text"):
        precheck(spec(folder))


@pytest.mark.parametrize("name", ["qwen2_vl", "florence2"])
def test_code_of_its_own_is_refused_wherever_it_is_asked_for(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for number, file in enumerate(("config.json", "processor_config.json", "tokenizer_config.json")):
        folder = Path(shutil.copytree(folders[name], tmp_path / str(number)))
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
        with pytest.raises(ConfigError, match=rf"{file} asks for code of its own \(auto_map\)"):
            precheck(spec(folder))
