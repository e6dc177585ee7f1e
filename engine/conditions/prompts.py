"""Prompts: the recipe's template filled with a cleaned class name and a caption, user text never read as a template."""

from __future__ import annotations

import re
from collections.abc import Sequence

FIELDS = re.compile(r"(\{class\}|\{caption\})")
SEPARATORS = r"[\s,;:|.\-–—]"


def clean_class_name(name: str) -> str:
    """A class name as words: underscores and line breaks to spaces, runs of spaces to one; a name without any word
    stays."""
    words = " ".join(name.replace("_", " ").split())
    return words or name


def without_caption(template: str) -> str:
    """The template for an empty caption: `{caption}` goes with the brackets round it and the separator before (or
    after) it."""
    for field in (r"\(\s*\{caption\}\s*\)", r"\[\s*\{caption\}\s*\]", r"\{caption\}"):
        template = re.sub(rf"^{SEPARATORS}*{field}{SEPARATORS}*", "", template)
        template = re.sub(rf"{SEPARATORS}*{field}", "", template)
    return template.strip()


def fill(template: str, class_name: str, caption: str) -> str:
    """One prompt, such as "photo of tench, a man holding a fish" from "photo of {class}, {caption}".

    Text that stands in for a field is not searched for fields again.
    """
    return "".join(text for _, text in _parts(template, class_name, caption)).strip()


def class_ends(template: str, class_name: str, caption: str) -> list[int]:
    """Where the class name ends in `fill` of the same: the number of letters up to there, for each time that it stands
    there."""
    parts = _parts(template, class_name, caption)
    whole = "".join(text for _, text in parts)
    before, ends, done = len(whole) - len(whole.lstrip()), [], 0
    for field, text in parts:
        done += len(text)
        if field == "{class}":
            ends.append(len(whole[:done].rstrip()) - before)
    return ends


def _parts(template: str, class_name: str, caption: str) -> list[tuple[str, str]]:
    """The template cut at its fields, each part with the text that stands for it."""
    caption = " ".join(caption.split())
    values = {"{class}": clean_class_name(class_name), "{caption}": caption}
    if not caption:
        template = without_caption(template)
    return [(part, values.get(part, part)) for part in FIELDS.split(template)]


def fill_all(
    template: str, class_names: Sequence[str], labels: Sequence[int], captions: Sequence[str]
) -> tuple[str, ...]:
    """Prompts of N images from their labels (indices into `class_names`) and captions."""
    return tuple(fill(template, class_names[label], caption) for label, caption in zip(labels, captions, strict=True))
