"""A run whose prompts are too long: told, noted in each sample, counted for the report; refused where the class is
cut."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import CLIPTokenizer

from engine.conditions import stored, table
from engine.diffusion import checkpoint as checkpoints
from engine.errors import ConfigError
from engine.generation import generation_job
from engine.images.catalog import SCHEMA, Catalog
from engine.shards.verification import verify
from engine.storage.store import Store, open_store
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import digits_spec
from tests.support.synthetic import Quiet

CLASSES, N = ("zero", "one"), 6
Generate = Callable[..., tuple[Store, Quiet]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads 16 tokens, two of them start and end."""
    return write_checkpoint(tmp_path_factory.mktemp("cut") / "model")


@pytest.fixture
def generate(checkpoint: Path, tmp_path: Path) -> Generate:
    """Draw ten samples of a prompt from stored conditions, in this process: the output, and what was told."""

    def run(prompt: str, **asked: Any) -> tuple[Store, Quiet]:
        spec = digits_spec(checkpoint, {"count": 10, "num_inference_steps": 1, **asked}, conditions={"prompt": prompt})
        store, told = open_store(str(tmp_path / "out")), Quiet()
        keys, labels = [f"image{k}" for k in range(N)], np.arange(N, dtype=np.int32) % len(CLASSES)
        features = np.random.default_rng(0).normal(size=(N, 64)).astype(np.float32)
        captions = pa.table({"key": keys, "label": labels, "caption": ["thin"] * N})
        stored.publish(store, stored.CAPTIONS, captions, {}, fitted={}, class_names=list(CLASSES))
        stored.publish(store, stored.FEATURES, pa.table({"key": keys, "feature": stored.as_lists(features)}), {})
        stored.publish(store, stored.CLASSES, table.class_statistics(features, labels, CLASSES), {})
        catalog = Catalog(SCHEMA.empty_table(), CLASSES, 0, "digest")
        model = checkpoints.inspect(spec.model, spec.images.size)
        generation_job.generate(spec, store, model, table.load(store, spec), catalog, told, here="cpu")
        return store, told

    return run


def samples(store: Store) -> list[dict[str, Any]]:
    """The JSON of every sample, as Python's own tarfile reads it."""
    found = []
    for entry in store.list("data/"):
        if entry.name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(store.read(entry.name))) as tar:
                found += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    return found


def _spoken(told: Quiet) -> list[str]:
    """What was said of prompts."""
    return [note for note in told.notes if "leaves out" not in note]


def test_cut_prompts_are_told_and_noted_in_each_sample(checkpoint: Path, generate: Generate) -> None:
    long = "photo of digit {class} " + "thin " * 19 + "{caption}"
    store, told = generate(long, quality_suffix=" bold", negative_prompt="left " * 30)
    assert _spoken(told)[:2] == [
        "generate: 6 of 6 prompts are too long and are cut: 6 by tokenizer (16 tokens)",
        "generate: the negative prompt is too long and is cut: 16 tokens by tokenizer",
    ]
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    made = samples(store)
    assert len(made) == 10
    for meta in made:
        whole = len(tokenizer(meta["prompt"], verbose=False)["input_ids"])
        assert meta["prompt_cut"] == {"tokenizer": whole - 16}
    found = json.loads(store.read("results/prompts.json"))
    assert (found["prompts"], found["cut"], found["negative"]) == (6, 6, {"tokenizer": 16})
    assert not verify(store).faults


def test_prompts_that_are_read_whole_are_not_spoken_of(generate: Generate) -> None:
    store, told = generate("photo of digit {class}, {caption}")
    assert not _spoken(told)
    made = samples(store)
    assert len(made) == 10
    assert not any("prompt_cut" in meta for meta in made)
    assert json.loads(store.read("results/prompts.json"))["cut"] == 0


def test_a_class_behind_what_is_read_is_refused_before_any_worker(generate: Generate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conditions\.prompt: puts class 'zero' behind the 16 tokens that are read"):
        generate("thin " * 20 + "digit {class}")
    assert not (tmp_path / "out/plan.json").exists()
