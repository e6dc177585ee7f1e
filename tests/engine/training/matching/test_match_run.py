"""The whole fine-tune: inputs by Ray Data, two workers of Ray Train; idempotent, refused for other inputs, drawn
with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.cluster.progress import PlainReporter
from engine.errors import ConfigError, DataError
from engine.generation import generation_job
from engine.shards.verification import verify
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import Store, open_store
from engine.training.matching import data
from engine.training.matching.matching_precheck import lora_of, precheck
from engine.training.matching.matching_run import match
from tests.support.matching import Parts, match_spec
from tests.support.outputs import Output

TWO = ResourcesSpec(device="cpu", actors=1, batch_size=8, train_workers=2)


@pytest.fixture(scope="module")
def parts(ready: Output) -> Parts:
    spec = match_spec(ready.spec, mmd="kernel_latent", precompute=True, steps=4)
    return Parts(ready, spec.model_copy(update={"resources": TWO}))


@pytest.fixture(scope="module")
def store(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An output whose fine-tune was run by two workers, and which keeps a copy of the inputs that they had."""
    made = open_store(str(tmp_path_factory.mktemp("matched")))
    output = parts.output
    for name in ("captions", "features", "classes"):
        path = f"conditions/{name}.parquet"
        made.create(path, output.store.read(path))
    rows = output.catalog.split("train")
    data.precompute(parts.spec, output.checkpoint, rows, output.conditions, made, _inputs(parts), PlainReporter())
    made.create("kept/inputs.parquet", made.read(data.INPUTS))
    assert match(parts.spec, made, output.checkpoint, output.catalog, PlainReporter())["done"]
    return made


def _inputs(parts: Parts) -> dict[str, object]:
    from engine.training.matching.matching_run import input_facts, made_from

    output = parts.output
    return input_facts(parts.spec, made_from(parts.spec, output.checkpoint, output.catalog, output.conditions))


def test_two_workers_of_ray_train_have_the_losses_of_one(parts: Parts, store: Store, tmp_path: Path) -> None:
    assert parts.matching(tmp_path, inputs=parts.cache()).run()["done"]
    one = json.loads((tmp_path / "results/match.json").read_text())
    two = json.loads(store.read("results/match.json"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["mmd"] == pytest.approx(one["mmd"], rel=1e-4)
    assert not list(store.list("checkpoints/"))
    assert not store.exists(data.INPUTS)


def test_stored_inputs_are_those_computed_at_once(parts: Parts, store: Store, tmp_path: Path) -> None:
    again = open_store(str(tmp_path))
    again.create(data.INPUTS, store.read("kept/inputs.parquet"))
    where = parts.matching(tmp_path / "live", inputs=parts.cache()).inputs.place
    loaded, computed = data.load(again, parts.output.conditions, where), parts.cache()
    off = [computed.labels == -1] * 2
    rows, none = computed.labels * 0, computed.labels * 0
    assert (loaded.latents == computed.latents).all()
    told = [one.condition(none, rows, *off)["states"] for one in (loaded, computed)]
    assert (told[0] == told[1]).all()
    empty = [one.condition(none, rows, ~off[0], off[1])["states"] for one in (loaded, computed)]
    assert (empty[0] == empty[1]).all()
    assert not (empty[0] == told[0]).all()


def test_a_finished_fine_tune_is_left_alone_and_another_is_refused(parts: Parts, store: Store) -> None:
    output = parts.output
    before = {entry.name: entry.size for entry in store.list("match/")}
    assert "nothing to do" in match(parts.spec, store, output.checkpoint, output.catalog, PlainReporter())["message"]
    assert {entry.name: entry.size for entry in store.list("match/")} == before
    other = match_spec(parts.spec, mmd="residual", steps=4)
    with pytest.raises(DataError, match="with other settings"):
        match(other, store, output.checkpoint, output.catalog, PlainReporter())


def test_the_set_is_drawn_with_it(parts: Parts, store: Store) -> None:
    output = parts.output
    spec = parts.spec.model_copy(update={"generate": parts.spec.generate.model_copy(update={"count": 10})})
    lora = lora_of(spec, store)
    generation_job.generate(
        spec, store, output.checkpoint, output.conditions, output.catalog, PlainReporter(), lora=lora, here="cpu"
    )
    digest = json.loads(store.read("match/mimeo.json"))["files"]["pytorch_lora_weights.safetensors"]
    assert json.loads(store.read("plan.json"))["lora"] == digest
    assert not verify(store).faults


@pytest.mark.parametrize(
    ("resources", "match_settings", "says"),
    [
        ({"train_workers": 3}, {}, "3 workers cannot share match.batch 8 evenly"),
        ({"train_workers": 4, "train_workers_min": 2}, {"batch": 8}, "3 workers cannot share"),
        ({"train_workers": 50}, {"batch": 50}, "50 workers are more than the 40 training images"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    ready: Output, resources: dict[str, int], match_settings: dict[str, int], says: str
) -> None:
    spec = match_spec(ready.spec, **match_settings).model_copy(update={"resources": ResourcesSpec(**resources)})
    with pytest.raises(ConfigError, match=says):
        precheck(spec)
