"""The job under a real Ray: the same bytes whatever the cluster looks like, refusals, budgets, poison and full
disks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from engine.errors import ClusterError, ConfigError, DataError, StorageError
from engine.generation import actor_pool, generation_job
from engine.generation.meter import cpu_name
from engine.shards import cost, manifest
from engine.shards.shard_status import status
from engine.shards.verification import verify
from engine.spec import RunSpec
from engine.spec.recipe import FastSpec
from engine.storage.store import open_store
from tests.support import outputs, poison
from tests.support.outputs import Output
from tests.support.synthetic import Quiet


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    """An output with catalog and conditions, nothing generated."""
    return outputs.ready(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(ready: Output, tmp_path: Path) -> Callable[..., Output]:
    """Copies of `ready` in folders of their own, with other resources or generation settings."""

    def make(name: str, generate: dict[str, Any] | None = None, **resources: Any) -> Output:
        spec = changed(ready.spec, "generate", **(generate or {}))
        spec = changed(spec, "resources", **resources)
        store = open_store(str(tmp_path / name))
        for entry in ready.store.list():
            if entry.name.startswith(("catalog", "conditions")):
                store.create(entry.name, ready.store.read(entry.name))
        return dataclasses.replace(ready, spec=spec, store=store)

    return make


def changed(spec: RunSpec, section: str, **values: Any) -> RunSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


def shas(output: Output) -> dict[str, str]:
    """SHA-256 of every file that is a result, by name."""
    names = [
        e.name
        for e in output.store.list()
        if e.name.endswith((".tar", ".parquet", "sizes.json", "_info.json", "index.json"))
    ]
    return {
        name: hashlib.sha256(output.store.read(name)).hexdigest()
        for name in names
        if name.startswith(("data", "m", "q"))
    }


def wait_for_free_cluster() -> None:
    """Every CPU slot is given back: nothing of an aborted job runs on."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "actors of an aborted job still hold their slots"
        time.sleep(0.2)


def test_the_same_bytes_for_any_number_of_actors_and_any_order(copy: Callable[..., Output]) -> None:
    outputs = [copy(f"a{n}", actors=n) for n in (1, 2, 4)]
    for output, order in zip(outputs, ("planned", "shuffled", "planned"), strict=True):
        summary = output.generate(order=order)
        assert (summary.count, summary.quarantined, summary.shards, summary.made) == (60, 0, 6, 6)
        assert verify(output.store).faults == []
    assert shas(outputs[0]) == shas(outputs[1]) == shas(outputs[2])
    assert len(shas(outputs[0])) == 6 + 2 + 3
    again(outputs[0])


def again(output: Output) -> None:
    """A finished output is done and stays as it is; a lost shard is made again, byte for byte."""
    assert generation_job.is_done(output.store)
    before = shas(output)
    assert output.generate().made == 0
    output.store.remove("data/digits-000003.tar")
    assert verify(output.store).faults
    assert output.generate().made == 1
    assert shas(output) == before
    assert verify(output.store).faults == []
    assert not list(output.store.list("attempts/"))


def test_fast_switches_and_an_automatic_batch_leave_ids_and_seeds(copy: Callable[..., Output]) -> None:
    switches = FastSpec(channels_last="on", fuse_qkv=True, attention="math", decode_batch=4)
    made = []
    for output in (copy("plain"), copy("fast", batch_size="auto", fast=switches)):
        output.generate(here="cpu")
        assert verify(output.store).faults == []
        table = pq.read_table(io.BytesIO(output.store.read("manifest.parquet")))
        with tarfile.open(fileobj=io.BytesIO(output.store.read("data/digits-000002.tar"))) as tar:
            facts = [(one.name, tar.extractfile(one).read()) for one in tar if one.name.endswith((".json", ".cls"))]  # type: ignore[union-attr]
        made.append((table.drop_columns(["sha256", "bytes"]).to_pylist(), facts))
    assert made[0] == made[1]
    assert len(made[0][1]) == 20


def test_status_tells_what_a_run_has_cost(copy: Callable[..., Output]) -> None:
    output = copy("costs", actors=2, threads=2)
    began = time.monotonic()
    output.generate()
    lasted = time.monotonic() - began
    found = status(output.store).cost
    made = [json.loads(output.store.read(f"data/digits-{k:06d}.json")) for k in range(6)]
    assert (found.shards, found.unknown, found.accepted, found.drawn) == (6, 0, 60, 60)
    assert found.finished.seconds == pytest.approx(sum(record["device_seconds"] for record in made))
    assert 0 < found.finished.seconds < 2 * sum(record["seconds"] for record in made), "publishing is not in it"
    assert found.other.seconds > 0  # loading at least
    assert found.hours * 3600 < 2 * 2 * lasted
    lines = dict(status(output.store).lines(0.5))
    assert lines["device time"].endswith(f"core-hours ({cpu_name()})")
    assert lines["price"].endswith("at 0.5 a core-hour")
    assert "energy" not in lines


def test_a_run_in_this_process_ends_its_usage_file(copy: Callable[..., Output]) -> None:
    output = copy("here")
    output.generate(here="cpu")
    (before,) = cost.usages(output.store)
    assert before.device_seconds >= before.booked_seconds > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "meter" and thread.is_alive()]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda o: dataclasses.replace(o, spec=changed(o.spec, "generate", guidance_scale=3.0)), "spec_hash"),
        (lambda o: dataclasses.replace(o, spec=changed(o.spec, "generate", count=70)), "count"),
        (lambda o: dataclasses.replace(o, checkpoint=dataclasses.replace(o.checkpoint, digest="0" * 64)), "checkpoint"),
        (lambda o: dataclasses.replace(o, catalog=dataclasses.replace(o.catalog, digest="0" * 64)), "catalog"),
        (
            lambda o: dataclasses.replace(o, conditions=dataclasses.replace(o.conditions, prompts=("x",) * 40)),
            "conditions",
        ),
        (
            lambda o: dataclasses.replace(
                o, conditions=dataclasses.replace(o.conditions, features=o.conditions.features + np.float32(1e-6))
            ),
            "conditions",
        ),
    ],
)
def test_an_output_begun_with_something_else_is_refused(
    copy: Callable[..., Output], change: Callable[[Output], Output], key: str
) -> None:
    output = copy("out")
    begin(output)
    before = [(e.name, output.store.read(e.name)) for e in output.store.list()]
    with pytest.raises(ConfigError, match=rf"plan\.json.* {key}: ") as caught:
        change(output).generate()
    assert "\n" not in str(caught.value)
    assert [(e.name, output.store.read(e.name)) for e in output.store.list()] == before


def begin(output: Output) -> None:
    """Publish plan.json as the job does."""
    facts = generation_job.PlanFacts("digits", 60, 10, generation_job.spec_hash(output.spec))
    generation_job._begin(
        output.store,
        generation_job._plan_json(output.spec, facts, output.checkpoint, None, output.conditions, output.catalog),
    )


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff"])
def test_a_broken_plan_is_one_line(copy: Callable[..., Output], text: bytes) -> None:
    output = copy("out")
    output.store.create("plan.json", text)
    with pytest.raises(DataError, match=r"plan\.json: is not the plan"):
        output.generate()


def test_what_cannot_be_drawn_is_refused_before_any_worker(copy: Callable[..., Output]) -> None:
    output = copy("out", {"scheduler": "dpmsolver_sd"})
    with pytest.raises(ConfigError, match="scheduler"):
        output.generate()
    assert not output.store.exists("plan.json")


def test_a_run_over_its_budget_stops_and_says_why(copy: Callable[..., Output]) -> None:
    gate = copy("x").spec.generate.gate.model_copy(update={"min_std": 200.0, "max_attempts": 2})
    output = copy("out", {"gate": gate, "count": 20})
    with pytest.raises(DataError, match=r"20 of 20 .*constant_image \(20\).*max_quarantined") as caught:
        output.generate()
    assert caught.value.exit_code == 3
    wait_for_free_cluster()
    with pytest.raises(DataError, match="constant_image"):
        output.generate()
    assert not generation_job.is_done(output.store)
    summary = lenient(output).generate()
    assert (summary.count, summary.reasons) == (0, {"constant_image": 20})
    assert generation_job.is_done(output.store)


def lenient(output: Output) -> Output:
    """The same run, to which no share of failures is too much."""
    gate = output.spec.generate.gate.model_copy(update={"max_quarantined": 1.0})
    return dataclasses.replace(output, spec=changed(output.spec, "generate", gate=gate))


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type], None]]:
    """Run jobs with an actor of another class."""
    yield lambda kind: monkeypatch.setattr(actor_pool, "ShardActor", kind)
    wait_for_free_cluster()


def test_a_shard_that_kills_its_workers_is_given_up(copy: Callable[..., Output], actor: Callable[[type], None]) -> None:
    actor(poison.DeadlyActor)
    output = lenient(copy("out", {"count": 30}))
    summary = output.generate()
    assert summary.reasons == {"worker_died": 10, "not_drawn": 20}
    rows = manifest.load(output.store).quarantine.to_pylist()
    deaths = {(row["index"] // 10, row["reason"]): row["attempts"] for row in rows}
    assert deaths.pop((1, "worker_died")) == 5
    assert deaths.keys() == {(0, "not_drawn"), (2, "not_drawn")}
    assert max(deaths.values()) <= 2, (
        "a shard that is published while the next one kills is held responsible once at most"
    )
    assert verify(output.store).faults == []


def test_a_full_disk_is_the_users_error_and_the_job_goes_on_later(
    copy: Callable[..., Output], actor: Callable[[type], None]
) -> None:
    output = lenient(copy("out", {"count": 30}))
    actor(poison.FullDiskActor)
    with pytest.raises(StorageError, match=r"/out: no space left \(0.0 MiB free\); make room"):
        output.generate()
    wait_for_free_cluster()
    actor(poison.IdleActor)
    assert output.generate().shards == 3


def test_workers_that_die_while_loading_end_the_job(copy: Callable[..., Output], actor: Callable[[type], None]) -> None:
    actor(poison.LoadlessActor)
    with pytest.raises(ClusterError, match=r"6 workers died while they loaded the model"):
        copy("out").generate()


def test_where_nothing_moves_a_new_pool_takes_over(copy: Callable[..., Output], actor: Callable[[type], None]) -> None:
    actor(poison.FrozenActor)
    output = lenient(copy("out", {"count": 50}, actors=2, stall=3.0))
    reporter = Quiet()
    assert output.generate(reporter).reasons == {"not_drawn": 50}
    assert [note for note in reporter.notes if "a new pool of workers makes the" in note]
    assert verify(output.store).faults == []


def test_a_pool_that_never_moves_ends_in_one_line(
    copy: Callable[..., Output], actor: Callable[[type], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.generation.generation_watch.LOADING_S", 4.0)
    monkeypatch.setattr(actor_pool, "MAX_RESTARTS", 1)
    actor(poison.AsleepActor)
    with pytest.raises(ClusterError, match="nothing moves, after 1 new pools"):
        copy("out").generate()


def test_very_long_plans_put_several_shards_in_a_row() -> None:
    rows = actor_pool.rows(list(range(actor_pool.MAX_ROWS * 3 + 1)))
    assert len(rows) <= actor_pool.MAX_ROWS
    assert [k for row in rows for k in json.loads(row["shards"])] == list(range(actor_pool.MAX_ROWS * 3 + 1))
    assert [json.loads(row["shards"]) for row in actor_pool.rows([4, 2, 9])] == [[4], [2], [9]]
