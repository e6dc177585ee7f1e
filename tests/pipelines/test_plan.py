"""What `mimeo plan` says of the cost of a run, from records whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.conditions import stored
from engine.errors import ConfigError
from engine.shards.cost import Usage
from engine.shards.names import PLAN, PlanFacts
from engine.spec import RunSpec, spec_hash, validate
from engine.storage.claim import claim
from engine.storage.store import Store, open_store
from pipelines.cli import execute
from pipelines.plan import begun, facts, reading
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import digits_spec
from tests.support.sealed import publish_shard

HOW: dict[str, Any] = {"device": "cuda", "device_name": "NVIDIA H100", "device_seconds": 1800.0, "drawn": 12}


def spec_of(count: int = 100, **resources: Any) -> RunSpec:
    generate = {"count": count, "shard_size": 10}
    return validate({"name": "toy", "source": {"kind": "digits"}, "generate": generate, "resources": resources})


def output(folder: Path, spec: RunSpec) -> Store:
    """An output that was begun and has no shard."""
    store = open_store(folder)
    claim(store, spec)
    plan = PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec))
    store.create(PLAN, json.dumps(plan.to_json()).encode())
    return store


def lines(spec: RunSpec, folder: Path) -> dict[str, str]:
    return dict(facts(spec, begun(spec, str(folder))))


def test_before_the_first_shard(tmp_path: Path) -> None:
    spec = spec_of(price_per_hour=2)
    assert lines(spec, tmp_path / "none")["device time"] == "known after the first shard"
    output(tmp_path / "out", spec)
    found = lines(spec, tmp_path / "out")
    assert found["device time"] == "known after the first shard"
    assert "price" not in found


def test_what_is_left_at_the_rate_of_the_first_shards(tmp_path: Path) -> None:
    spec = spec_of(price_per_hour=2)
    store = output(tmp_path / "out", spec)
    for k in (0, 1):
        publish_shard(store, PlanFacts.load(store), k, (10 * k,), **HOW, joules=720_000.0)
    usage = Usage("n", 1, "cuda", "NVIDIA H100", 5400.0, 3600.0, 1_800_000.0, 1_440_000.0, 0.0)
    store.create("usage/a.json", usage.to_json())
    found = lines(spec, tmp_path / "out")
    assert found["device time left"] == "4 GPU-hours for 80 images, at the rate of the 2 shards made here"
    assert found["energy"] == "1.6 kWh for these"
    assert found["price"] == "8 for these, at 2 a GPU-hour; 167 per 1,000 accepted images so far"  # 2 x 1.5 h / 18
    assert "price" not in lines(spec_of(), tmp_path / "out")


def test_a_longer_plan_is_estimated_whole(tmp_path: Path) -> None:
    store = output(tmp_path / "out", spec_of())
    publish_shard(store, PlanFacts.load(store), 0, **HOW)
    found = lines(spec_of(count=1000), tmp_path / "out")
    assert found["device time"] == "50 GPU-hours for 1,000 images, at the rate of the 1 shard made here"
    assert "energy" not in found


def test_records_of_an_older_engine_give_the_time_of_an_actor(tmp_path: Path) -> None:
    store = output(tmp_path / "out", spec_of(price_per_hour=2))
    publish_shard(store, PlanFacts.load(store), 0, seconds=3600.0)
    found = lines(spec_of(price_per_hour=2), tmp_path / "out")
    assert found["actor time"].startswith("9 hours on one actor for 90 images")
    assert "price" not in found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight generator that reads 16 tokens: 14 words of its vocabulary."""
    return write_checkpoint(tmp_path_factory.mktemp("planned") / "model")


@pytest.mark.parametrize(
    ("prompt", "kind", "says"),
    [
        ("photo of digit {class}", "class", "none"),
        ("photo of digit {class}, {caption}", "moments", "none without their captions"),
        (
            "photo of digit {class} " + "thin " * 14,
            "class",
            "10 of 10 prompts are too long and are cut: 10 by tokenizer",
        ),
    ],
)
def test_cut_prompts_are_told(checkpoint: Path, tmp_path: Path, prompt: str, kind: str, says: str) -> None:
    spec = digits_spec(checkpoint, conditions={"prompt": prompt, "caption": {"kind": kind}})
    assert lines(spec, tmp_path / "none")["prompts cut"].startswith(says)
    nowhere = spec.model_copy(update={"model": spec.model.model_copy(update={"checkpoint": "s3://bucket/model"})})
    assert lines(nowhere, tmp_path / "none")["prompts cut"] == "known once the generator is here"


@pytest.mark.parametrize("closed", [False, True])
def test_a_class_that_is_cut_is_refused_before_ray(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = digits_spec(checkpoint, {"visual_token": "none"}, conditions={"prompt": "thin " * 30 + "{class}"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(spec.model_dump(mode="json") | ({"model": {}} if closed else {})))
    for verb in ["generate"] if closed else ["plan", "generate"]:
        assert execute([verb, str(recipe), "-o", "out"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "conditions.prompt: puts class '0' behind the 16 tokens that are read" in line
    assert not (tmp_path / "out/spec.yaml").exists()


def test_after_captioning_whole_prompts_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    """Captions as a run has stored them, the class behind some of them."""
    spec = digits_spec(checkpoint, conditions={"prompt": "{caption}, {class}", "caption": {"kind": "moments"}})
    store = open_store(str(tmp_path))
    claim(store, spec)
    captions = pa.table({"key": ["a", "b"], "label": pa.array([0, 1], pa.int32()), "caption": ["thin", "left " * 12]})
    stored.publish(store, stored.CAPTIONS, captions, {}, fitted={}, class_names=["0", "1"])
    assert reading(spec, store, ("0", "1"))[1].startswith("none of 2")
    longer = pa.table({**{name: captions[name] for name in ("key", "label")}, "caption": ["thin", "left " * 13]})
    store.remove(stored.CAPTIONS)
    stored.publish(store, stored.CAPTIONS, longer, {}, fitted={}, class_names=["0", "1"])
    with pytest.raises(ConfigError, match="puts class '1' behind the 16 tokens"):
        reading(spec, store, ("0", "1"))
