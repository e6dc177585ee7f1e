"""Which number a class-conditional generator knows each class of the training images by: by its own names, never by
position."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.spec.recipe import ModelSpec

if TYPE_CHECKING:
    from engine.diffusion.checkpoint import Checkpoint

WORDNET = re.compile(r"n\d{8}")
KEY = "model.class_ids"


def numbers(checkpoint: Checkpoint, class_names: Sequence[str], model: ModelSpec) -> tuple[int, ...] | None:
    """The checkpoint's number of each class; None where it reads text. `model` is the recipe's section.

    A class is the number that `class_ids` says, or the one whose label it equals, as a whole or as one of the synonyms
    that commas separate, or in the case of a WordNet id that the label shares a synonym with, or the number that it is
    written as. Case, underscores and hyphens do not count. A generator that the recipe itself has trained knows the
    classes in their order. ConfigError for names that have no number or several, and for two classes of one number.
    """
    if checkpoint.classes is None:
        if model.class_ids:
            raise ConfigError(KEY, "is set, but the checkpoint reads text and knows no classes", "leave it out")
        return None
    strange = next((name for name in model.class_ids if name not in class_names), None)
    if strange is not None:
        raise ConfigError(KEY, f"{strange!r} is no class of the training images", _near(strange, class_names))
    if model.checkpoint is None and checkpoint.class_labels is None:
        _check_count(checkpoint, class_names)
        return tuple(range(len(class_names)))
    labels = _Labels(checkpoint.class_labels or {}, checkpoint.classes)
    found = tuple(labels.checked(model.class_ids[n]) if n in model.class_ids else labels.number(n) for n in class_names)
    for place, number in enumerate(found):
        if number in found[:place]:
            twice = (
                f"{class_names[found.index(number)]!r} and {class_names[place]!r} are both class "
                f"{number} of the checkpoint"
            )
            raise ConfigError(
                KEY, f"{twice}, which would draw the same for both", "leave one out, or give them two numbers"
            )
    return found


def is_order(found: Sequence[int] | None) -> bool:
    """Whether the classes' numbers are their places, or there are none."""
    return found is None or tuple(found) == tuple(range(len(found)))


def shown(found: Sequence[int], class_names: Sequence[str], checkpoint: Checkpoint) -> str:
    """The first of the numbers, for people."""
    labels = checkpoint.class_labels or {}
    pairs = list(zip(class_names, found, strict=True))[:5]
    told = [f"{name} is {number}" + (f" ({labels[number][:40]})" if number in labels else "") for name, number in pairs]
    return ", ".join(told) + (f" and {len(found) - 5:,} more" if len(found) > 5 else "")


class _Labels:
    """The checkpoint's labels, found by name."""

    def __init__(self, labels: Mapping[int, str], classes: int) -> None:
        self._labels, self._classes = labels, classes
        self._exact = _inverse((label, number) for number, label in labels.items())
        self._whole = _inverse((_plain(label), number) for number, label in labels.items())
        self._synonyms = _inverse((name, number) for number, label in labels.items() for name in _synonyms(label))

    def number(self, name: str) -> int:
        """Of one class by its name."""
        found = self._exact.get(name) or self._whole.get(_plain(name)) or self._synonyms.get(_plain(name)) or set()
        if not found and WORDNET.fullmatch(name):
            found = self._of_wordnet(name)
        if not found and name.isascii() and name.isdecimal():
            return self.checked(int(name))
        if len(found) == 1:
            return next(iter(found))
        if found:
            what = (
                f"{name!r} is the name of {len(found)} classes of the checkpoint: {', '.join(map(str, sorted(found)))}"
            )
            raise ConfigError(KEY, what, f"say which one, as in model.class_ids: {{{name!r}: {min(found)}}}")
        what = (
            f"the checkpoint has no class {name!r}"
            if self._labels
            else f"the checkpoint does not say which class {name!r} is"
        )
        known = sorted({part for label in self._labels.values() for part in map(str.strip, label.split(","))})
        near = difflib.get_close_matches(_plain(name), [_plain(part) for part in known], n=3, cutoff=0.6)
        hint = f"its names are like {', '.join(near)}: rename the class, or " if near else ""
        raise ConfigError(KEY, what, f"{hint}give its number, as in model.class_ids: {{{name!r}: 0}}")

    def checked(self, number: int) -> int:
        """A number, if it is a class."""
        if not number < self._classes:
            raise ConfigError(KEY, f"{number} is no class of the checkpoint, which has 0 to {self._classes - 1}")
        return number

    def _of_wordnet(self, name: str) -> set[int]:
        """The number of an ImageNet class, where the label there says that the checkpoint counts as ImageNet does."""
        place, words = _imagenet().get(name, (-1, ""))
        shared = _synonyms(words) & _synonyms(self._labels.get(place, ""))
        return {place} if shared else set()


@cache
def _imagenet() -> dict[str, tuple[int, str]]:
    """Place and synonyms of each of ImageNet's 1,000 classes by WordNet id."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {name: (place, info.label_name_to_description(name)) for place, name in enumerate(info.label_names())}


def _inverse(pairs: Any) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, number in pairs:
        found.setdefault(name, set()).add(number)
    return found


def _synonyms(label: str) -> set[str]:
    return {_plain(part) for part in label.split(",")} - {""}


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", name).casefold().split())


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"they are {', '.join(list(known)[:10])}"


def _check_count(checkpoint: Checkpoint, class_names: Sequence[str]) -> None:
    if checkpoint.classes is not None and len(class_names) > checkpoint.classes:
        what = f"knows {checkpoint.classes} classes, the training images have {len(class_names)}"
        raise ConfigError("model.checkpoint", what, "use a checkpoint that reads text")
