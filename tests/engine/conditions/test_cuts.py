"""Prompts that are cut: counted by image and tokenizer, told, and refused where the class is what is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.conditions import cuts
from engine.conditions.table import Captions
from engine.diffusion.prompt_cuts import Readers
from engine.errors import ConfigError, DataError
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from tests.support.checkpoints import make_tokenizer

NAMES = ("zero", "one", "two")
TEN = "a thin bold slanted left right a thin bold left"  # one token a word; 14 of 16 are for words


@pytest.fixture(scope="module")
def clip() -> Readers:
    return Readers({"tokenizer": 16}, lambda name: make_tokenizer(16))


@pytest.fixture(scope="module")
def two() -> Readers:
    """A short reader and a long one, as CLIP and T5 are."""
    return Readers({"tokenizer": 16, "tokenizer_3": 40}, lambda name: make_tokenizer(16))


def asking(prompt: str, **generate: Any) -> RunSpec:
    data = {"name": "t", "source": {"kind": "digits"}, "conditions": {"prompt": prompt}, "generate": generate}
    return validate(data)


def told(*pairs: tuple[int, str]) -> Captions:
    labels = np.array([label for label, _ in pairs], np.int32)
    return Captions((), labels, tuple(caption for _, caption in pairs), NAMES, {})


def test_nothing_is_told_where_nothing_is_cut(clip: Readers) -> None:
    found = cuts.check(clip, asking("photo of {class}, {caption}"), told((0, ""), (1, "thin"), (2, "bold left")))
    assert (found.prompts, found.cut, found.by_tokenizer, found.lines) == (3, 0, {}, [])
    assert (
        cuts.check(Readers({}, make_tokenizer), asking(f"{TEN} {TEN} {{class}}"), told((0, ""), (1, ""))).lines == []
    )  # a DiT


def test_images_are_counted_not_prompts_and_by_tokenizer(two: Readers) -> None:
    spec = asking("{class} {caption}")
    found = cuts.check(two, spec, told((0, "thin"), (0, TEN + " left " * 5), (0, TEN + " left " * 5), (1, TEN * 4)))
    assert (found.prompts, found.cut, found.by_tokenizer) == (4, 3, {"tokenizer": 3, "tokenizer_3": 1})
    assert found.lines == [
        "3 of 4 prompts are too long and are cut: 3 by tokenizer (16 tokens), 1 by tokenizer_3 (40 tokens)"
    ]
    assert found.example.startswith("zero a thin")
    assert found.kept == found.example  # the longer reader has it whole


def test_suffix_and_negative_prompt_are_told_apart(clip: Readers) -> None:
    spec = asking("{class} {caption}", quality_suffix=" thin thin", negative_prompt="left " * 20)
    pairs = told((0, TEN), (1, TEN + " left left"), (2, TEN + " left" * 9))
    found = cuts.check(clip, spec, pairs)
    assert (found.cut, found.suffix_only, found.negative) == (2, 1, {"tokenizer": 6})
    assert found.lines[0].endswith("2 by tokenizer (16 tokens); 1 of them lose the quality suffix alone")
    assert found.lines[1] == "the negative prompt is too long and is cut: 6 tokens by tokenizer"
    training = cuts.check(clip, spec, pairs, drawn=False)
    assert (training.cut, training.suffix_only, training.negative) == (1, 0, {})


@pytest.mark.parametrize(
    ("template", "caption", "refused"),
    [
        (f"{TEN} thin thin thin {{class}}", "", False),  # the fourteenth word
        (f"{TEN} thin thin thin thin {{class}}", "", True),
        (f"{{class}} {TEN} thin thin thin thin {{class}}", "", False),  # it stands in front too
        ("{caption}, {class}", TEN, False),
        ("{caption}, {class}", f"{TEN} {TEN}", True),
        ("{class}, {caption}", f"{TEN} {TEN}", False),
    ],
)
def test_a_class_behind_what_is_read_is_refused(clip: Readers, template: str, caption: str, refused: bool) -> None:
    pairs = told((0, ""), (1, caption))
    if not refused:
        cuts.check(clip, asking(template), pairs)
        return
    with pytest.raises(
        ConfigError, match=r"conditions\.prompt: puts class '(zero|one)' behind the 16 tokens"
    ) as caught:
        cuts.check(clip, asking(template), pairs)
    assert "\n" not in str(caught.value)


def test_what_another_tokenizer_reads_is_no_reason_to_refuse(two: Readers) -> None:
    found = cuts.check(two, asking(f"{TEN} thin thin thin thin {{class}}"), told((0, ""), (1, "")))
    assert found.by_tokenizer == {"tokenizer": 2}
    with pytest.raises(ConfigError, match="behind the 40 tokens"):
        cuts.check(two, asking(f"{TEN} {TEN} {TEN} {TEN} {{class}}"), told((0, ""), (1, "")))


def test_a_class_name_that_is_cut_itself_is_refused(clip: Readers) -> None:
    long = told((0, ""), (1, ""))
    long = Captions((), long.labels, long.captions, (TEN, f"{TEN} left right left right left"), {})
    with pytest.raises(ConfigError, match="puts class 'a thin bold"):
        cuts.check(clip, asking("{class}"), long)


def test_classes_that_differ_behind_what_is_read_alone_are_refused(clip: Readers) -> None:
    """By captions, where the template names no class."""
    spec, same = asking("{caption}"), f"{TEN} left left left left"
    with pytest.raises(ConfigError, match=r"tells 'zero' and 'one' apart only behind the 16 tokens that are read"):
        cuts.check(clip, spec, told((0, f"{same} zero"), (1, f"{same} one")))
    some = cuts.check(clip, spec, told((0, f"{same} zero"), (0, "thin"), (1, f"{same} one")))
    assert some.cut == 2  # one image tells them apart
    cuts.check(clip, spec, told((0, f"{same} zero"), (1, f"{same} zero")))  # nothing ever told them apart


def test_class_names_alone_say_it_before_there_are_captions(clip: Readers) -> None:
    with pytest.raises(ConfigError, match="behind the 16 tokens"):
        cuts.check(clip, asking(f"{TEN} {TEN} {{class}}, {{caption}}"), cuts.of_classes(NAMES))
    assert cuts.check(clip, asking("{caption}, {class}"), cuts.of_classes(NAMES)).prompts == 3


def test_it_is_kept_for_the_report(clip: Readers, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert cuts.kept(store) is None
    found = cuts.check(clip, asking("{class} {caption}", negative_prompt=TEN * 3), told((0, TEN * 3), (1, "")))
    cuts.keep(store, found)
    assert cuts.kept(store) == found
    store.replace(cuts.RESULT, b'{"prompts": "many"}')
    with pytest.raises(DataError, match=r"prompts\.json: is not what mimeo writes"):
        cuts.kept(store)
