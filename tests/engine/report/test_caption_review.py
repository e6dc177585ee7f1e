"""The report's section on captions: counts by hand, examples by index alone, and only where captions were asked for."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from engine.conditions import stored
from engine.conditions.stored import CAPTIONS
from engine.images.image_reader import Reader
from engine.report.captions_page import chosen, review
from engine.report.facts import gather
from engine.report.html import write
from engine.spec import RunSpec
from engine.storage.store import Store, open_store
from tests.engine.report.test_html import Page
from tests.support.hostile import HOSTILE, JudgedRun

LONG = "a very long caption of eight words here <b>"
SAID = ["", LONG, *["a cat"] * 20, *["</bdi><script>x</script>"] * 3, *[f"number {n}" for n in range(25)]]


def captioned(run: JudgedRun, folder: Path, fitted: dict[str, Any] | None = None) -> tuple[Store, RunSpec]:
    """The judged run with SAID as its 50 captions."""
    shutil.copytree(run.store.url, folder)
    store, train = open_store(folder), run.catalog.split("train")
    table = pa.table({"key": train["key"], "label": train["label"], "caption": SAID})
    stored.publish(store, CAPTIONS, table, {}, fitted=fitted or {}, class_names=list(HOSTILE))
    conditions = {"caption": {"kind": "moments"}, "prompt": "photo of {class}, {caption}"}
    data = run.spec.model_dump() | {"conditions": conditions}
    data["generate"] |= {"quality_suffix": ", best", "guidance_on": "text", "guidance": "cfg"}
    return store, RunSpec.model_validate(data)


def test_the_counts_are_those_of_the_captions(judged_run: JudgedRun, tmp_path: Path) -> None:
    store, spec = captioned(judged_run, tmp_path / "run", {"cut": 4})
    write(store, spec)
    page = Page(store.read("report.html").decode())
    assert "distinct captions 28 " in page.words
    assert "empty 1 (2.0 %)" in page.words
    assert "cut at the longest length 4 (8.0 %)" in page.words
    assert f"longest 9 words: {LONG}" in page.words
    assert "most frequent 40.0 % of the images: a cat" in page.words
    assert "guidance 2 on the text only" in page.words
    assert "and suffix ', best'" in page.words
    assert "script" not in {tag for tag, _ in page.elements}


def test_the_examples_are_the_first_of_each_class_with_image_and_prompt(judged_run: JudgedRun, tmp_path: Path) -> None:
    store, spec = captioned(judged_run, tmp_path / "run")
    found = review(store, gather(store, spec))
    train = judged_run.catalog.split("train")
    keys, labels = train["key"].to_pylist(), train["label"].to_pylist()
    ranks = [labels[:row].count(label) for row, label in enumerate(labels)]
    rows = sorted(range(50), key=lambda row: (ranks[row], labels[row]))[:12]
    assert [example.key for example in found.examples] == [keys[row] for row in rows]
    assert [example.caption for example in found.examples] == [SAID[row] for row in rows]
    pixels = Reader(spec).pixels(train.take(rows))
    for example, row, real in zip(found.examples, rows, pixels, strict=True):
        words = f"{HOSTILE[labels[row]]}, {SAID[row]}" if SAID[row] else HOSTILE[labels[row]]
        assert example.prompt == f"photo of {' '.join(words.split())}, best"
        with Image.open(io.BytesIO(base64.b64decode(example.uri.partition(",")[2]))) as small:
            assert np.array_equal(np.asarray(small)[::4, ::4], real)
    assert "cut at the longest length" not in dict(found.facts)


def test_rows_are_chosen_by_class_and_place_alone() -> None:
    assert chosen(np.array([2, 0, 0, 2, 5, 0], np.int32)).tolist() == [1, 0, 4, 2, 3, 5]
    assert chosen(np.array([2, 0, 0, 2, 5, 0], np.int32), 4).tolist() == [1, 0, 4, 2]


def test_runs_whose_captions_are_the_class_have_no_such_section(judged_run: JudgedRun) -> None:
    write(judged_run.store, judged_run.spec)
    assert "captions" not in Page(judged_run.store.read("report.html").decode()).values("id")


@pytest.mark.parametrize(
    ("fault", "says"),
    [("absent", "is absent"), ("other", "belong to other images"), ("gone", "gone.parquet")],
)
def test_what_cannot_be_read_is_a_line(judged_run: JudgedRun, tmp_path: Path, fault: str, says: str) -> None:
    store, spec = captioned(judged_run, tmp_path / "run")
    if fault != "gone":
        store.remove(CAPTIONS)
    if fault == "other":
        table = pa.table({"key": ["x"], "label": pa.array([0], pa.int32()), "caption": ["y"]})
        stored.publish(store, CAPTIONS, table, {}, fitted={}, class_names=list(HOSTILE))
    if fault == "gone":
        source = spec.source.model_copy(update={"path": str(tmp_path / "gone.parquet")})
        spec = spec.model_copy(update={"source": source})
    found = review(store, gather(store, spec))
    assert says in found.fault
    assert bool(found.facts) == (fault == "gone")
    write(store, spec)
    page = Page(store.read("report.html").decode())
    assert "Something could not be read" in page.words
    assert "captions" in page.values("id")
