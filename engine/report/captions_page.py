"""The report's review of captions: how many differ, are empty or cut, and examples beside the prompts that were made
from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.conditions import prompts
from engine.conditions.table import Captions, load_captions
from engine.errors import DataError
from engine.evaluation.run_summary import percent
from engine.images.image_reader import Reader
from engine.report.facts import Facts
from engine.report.gallery import data_uri
from engine.storage.store import Store

EXAMPLES = 12
SHOWN = 160  # characters of a caption among the counts; the table has them whole


@dataclass(frozen=True)
class Example:
    """A training image: its thumbnail as a data URI ("" where it cannot be read), class, caption, and prompt as drawn
    with."""

    uri: str
    key: str
    class_name: str
    caption: str
    prompt: str


@dataclass(frozen=True)
class Review:
    """What there is to say of a run's captions: names and values, examples, and why something is missing."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    fault: str = ""


def review(store: Store, facts: Facts) -> Review | None:
    """The review of a finished run; None where no captions were asked for (kind `class`)."""
    if facts.spec.conditions.caption.kind == "class":
        return None
    try:
        found = load_captions(store)
    except DataError as error:
        return Review(fault=str(error))
    if found.keys != tuple(facts.catalog.split("train")["key"].to_pylist()):
        return Review(fault="they belong to other images than the catalog")
    rows = chosen(found.labels)
    uris, fault = _thumbnails(facts, rows)
    return Review(
        _counts(found), [_example(facts, found, int(row), uri) for row, uri in zip(rows, uris, strict=True)], fault
    )


def chosen(labels: NDArray[np.int32], count: int = EXAMPLES) -> NDArray[np.int64]:
    """Rows of the examples, by index alone: the first of each class, then the second of each, and so on."""
    order = np.argsort(labels, kind="stable")
    ranks = np.empty(len(labels), np.int64)
    sizes = np.bincount(labels)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((labels, ranks))[:count]


def _counts(found: Captions) -> list[tuple[str, str]]:
    counts = Counter(found.captions)
    total = len(found.captions)
    longest = max(found.captions, key=lambda text: (len(text.split()), len(text)))
    common, often = min(counts.items(), key=lambda item: (-item[1], item[0]))
    cut = found.fitted.get("cut")
    known = [] if cut is None else [("cut at the longest length", f"{cut:,} ({percent(cut / total)})")]
    return [
        ("training images", f"{total:,}"),
        ("distinct captions", f"{len(counts.keys() - {''}):,}"),
        ("empty", f"{counts['']:,} ({percent(counts[''] / total)})"),
        *known,
        ("longest", f"{len(longest.split()):,} words: {_short(longest)}"),
        ("most frequent", f"{percent(often / total)} of the images: {_short(common)}"),
    ]


def _short(text: str) -> str:
    return (text if len(text) <= SHOWN else f"{text[:SHOWN]}\u2026") or "(empty)"


def _thumbnails(facts: Facts, rows: NDArray[np.int64]) -> tuple[list[str], str]:
    """Data URIs of training images; empty ones, and why, where the sources can no longer be read."""
    try:
        pixels = Reader(facts.spec).pixels(facts.catalog.split("train").take(pa.array(rows)))
    except DataError as error:
        return [""] * len(rows), str(error)
    return [data_uri(image) for image in pixels], ""


def _example(facts: Facts, found: Captions, row: int, uri: str) -> Example:
    name, caption, spec = found.class_names[found.labels[row]], found.captions[row], facts.spec
    prompt = prompts.fill(spec.conditions.prompt, name, caption) + spec.generate.quality_suffix
    return Example(uri, found.keys[row], name, caption, prompt)
