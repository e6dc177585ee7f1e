"""The data set card: front matter that the Hub reads, and snippets that load the data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from engine.report.card import size_category, text
from engine.report.facts import gather
from tests.support.hostile import HOSTILE, JudgedRun


@pytest.fixture(scope="module")
def card(judged_run: JudgedRun) -> str:
    return text(gather(judged_run.store, judged_run.spec))


def test_front_matter(card: str) -> None:
    data = DatasetCard(card).data.to_dict()
    assert data["license"] == "other"
    assert {"synthetic", "webdataset"} <= set(data["tags"])
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/hostile-*.tar"}]}
    ]


@pytest.mark.parametrize(("count", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T")])
def test_size_categories(count: int, name: str) -> None:
    assert size_category(count) == name


def test_class_names_cannot_leave_their_block(card: str) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", card, re.S | re.M)
    names = [json.loads(body) for kind, body in blocks if kind == "json"]
    assert names == [list(HOSTILE)]
    assert len(blocks) == 5
    outside = re.sub(r"^```(\w*)\n(.*?)^```$", "", card, flags=re.S | re.M)
    assert "<script>" not in outside


@pytest.mark.parametrize("library", ["webdataset", "timm", "datasets"])
def test_each_snippet_loads_the_set(
    card: str, library: str, judged_run: JudgedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(judged_run.store.url)
    if library == "datasets":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", card, re.S) if f"import {library}" in code)
    names: dict = {}
    exec(snippet, names)
    labels = []
    for sample in names["data"]:
        labels.append(int(sample["cls"] if isinstance(sample, dict) else sample[1]))
    assert len(labels) == (192 if library == "timm" else 149)  # timm fills the last training batch up
    assert set(labels) == set(range(5))
