"""The actor in this process: what an order loads, and failures that travel as values."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import __version__, errors
from engine.conditions import featuremodel
from engine.diffusion import lora
from engine.errors import ClusterError, MimeoError, StorageError
from engine.generation import actor as actor_module
from engine.generation.actor import Adapter, Order, ShardActor, build_worker, pack, unpack
from engine.generation.generation_worker import Shard
from engine.images.image_reader import Reader
from engine.shards.records import Record
from engine.spec import RunSpec, spec_hash
from engine.storage.store import open_store
from tests.support import outputs, poison
from tests.support.checkpoints import write_lora
from tests.support.outputs import Output


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


def make_order(ready: Output, folder: Path, *, adapter: Path | None = None, **generate: Any) -> Order:
    """An order for a new output with the conditions of `ready`."""
    model = ready.spec.model.model_copy(update={"lora": str(adapter) if adapter else None})
    settings = type(ready.spec.generate)(**{"count": 8, "shard_size": 8, "num_inference_steps": 4, **generate})
    spec: RunSpec = ready.spec.model_copy(update={"model": model, "generate": settings})
    store = open_store(str(folder))
    for entry in ready.store.list():
        if entry.name.startswith(("catalog", "conditions")):
            store.create(entry.name, ready.store.read(entry.name))
    store.create("plan.json", b"{}")
    tuned = Adapter(adapter, lora.check(adapter, ready.checkpoint).sha256) if adapter else None
    return Order(str(folder), spec, ready.checkpoint, tuned, "cpu", "aaaa", 1)


def samples(folder: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Metadata and pixels of the first shard."""
    with tarfile.open(folder / "data/digits-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    metas = [json.loads(data) for name, data in files.items() if name.endswith("json")]
    images = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in files.items() if name.endswith("png")
    ]
    return metas, np.stack(images)


def test_samples_say_where_they_come_from(ready: Output, tmp_path: Path) -> None:
    order = make_order(ready, tmp_path)
    build_worker(order).make(0)
    expected = {
        "guidance_scale": order.spec.generate.guidance_scale,
        "scheduler": "dpmsolver++",
        "num_inference_steps": 4,
        "spec_hash": spec_hash(order.spec),
        "checkpoint": ready.checkpoint.digest,
        "lora": None,
        "engine": __version__,
    }
    for meta in samples(tmp_path)[0]:
        assert meta.items() >= expected.items()


def test_an_output_that_this_node_does_not_see_is_refused(ready: Output, tmp_path: Path) -> None:
    order = make_order(ready, tmp_path)
    open_store(str(tmp_path)).remove("plan.json")
    with pytest.raises(errors.StorageError, match=r"^node .*does not see the output .*object store"):
        build_worker(order)


def test_a_lora_is_attached_and_named(ready: Output, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "lora", ready.checkpoint.path)
    for name, adapter in (("plain", None), ("tuned", file)):
        build_worker(make_order(ready, tmp_path / name, adapter=adapter)).make(0)
    (_, plain), (metas, tuned) = samples(tmp_path / "plain"), samples(tmp_path / "tuned")
    assert {meta["lora"] for meta in metas} == {hashlib.sha256(file.read_bytes()).hexdigest()}
    assert not np.array_equal(plain, tuned)


def scribble(path: Path) -> None:
    """Change numbers of a safetensors file in place; size and time stay as they were."""
    before, data = path.stat(), path.read_bytes()
    with path.open("r+b") as stream:
        stream.seek(len(data) * 3 // 4)
        stream.write(bytes(byte ^ 1 for byte in data[len(data) * 3 // 4 :]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


WEIGHTS = {"unet": "unet/diffusion_pytorch_model.safetensors", "scorer": "clip/model.safetensors"}


@pytest.mark.parametrize("part", ["unet", "scorer", "lora"])
def test_a_file_that_changed_after_the_drivers_check_is_not_drawn_with(
    ready: Output, tmp_path: Path, part: str
) -> None:
    model = shutil.copytree(ready.checkpoint.path, tmp_path / "model")
    adapter = write_lora(tmp_path / "lora", model)
    order = make_order(ready, tmp_path / "out", adapter=adapter, gate={"min_clip_score": -1.0})
    scorer = featuremodel.resolve(order.spec.conditions.features, model).digest
    order = replace(order, checkpoint=replace(order.checkpoint, place=str(model)), features=scorer)
    build_worker(order)
    scribble(adapter if part == "lora" else model / WEIGHTS[part])
    with pytest.raises(StorageError, match=r"is not the (file|model) that the run began with") as caught:
        build_worker(order)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_file_that_changes_after_loading_changes_no_sample(ready: Output, tmp_path: Path) -> None:
    """On the CPU loaders map files, and what is written into them later would be drawn with."""
    model = shutil.copytree(ready.checkpoint.path, tmp_path / "model")
    drawn = []
    for name in ("before", "after"):
        order = make_order(ready, tmp_path / name)
        worker = build_worker(replace(order, checkpoint=replace(order.checkpoint, place=str(model))))
        if name == "after":
            for path in model.glob("*/*.safetensors"):
                scribble(path)
        worker.make(0)
        drawn.append(samples(tmp_path / name)[1])
    np.testing.assert_array_equal(*drawn)


def test_real_images_are_read_from_the_catalog_for_the_latent_prior(ready: Output, tmp_path: Path) -> None:
    """At a strength that leaves one step in ten, what comes out is near the VAE's own reconstruction of the real
    image."""
    order = make_order(
        ready, tmp_path, strength=0.1, pairing="own", num_inference_steps=10, scheduler="ddim", guidance_scale=1
    )
    worker = build_worker(order)
    worker.make(0)
    metas, drawn = samples(tmp_path)
    train = ready.catalog.split("train")
    rows = [train["key"].to_pylist().index(meta["init"]) for meta in metas]
    real = Reader(order.spec).pixels(train.take(rows))
    again = reconstruct(order, real)
    errors_here = np.abs(drawn.astype(float) - again).mean((1, 2, 3))
    errors_elsewhere = np.abs(drawn.astype(float) - np.roll(again, 1, 0)).mean((1, 2, 3))
    assert errors_here.mean() < 0.7 * errors_elsewhere.mean()


def reconstruct(order: Order, pixels: np.ndarray) -> np.ndarray:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(order.checkpoint.path, subfolder="vae").eval()
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        out = vae.decode(vae.encode(images).latent_dist.mode()).sample
    return ((out.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()


def test_the_clip_gate_loads_the_checkpoints_clip(ready: Output, tmp_path: Path) -> None:
    build_worker(make_order(ready, tmp_path, gate={"min_clip_score": -1.0})).make(0)
    scores = [meta["clip_score"] for meta in samples(tmp_path)[0]]
    assert all(-1 <= score <= 1 for score in scores)
    assert len(set(scores)) > 1


def call(actor: ShardActor, shards: str) -> tuple[list[Record], str]:
    out = actor({"shards": np.array([shards])})
    (records,), (fault,) = out["records"], out["fault"]
    return [Record.from_json(text.encode(), "reply") for text in json.loads(records)], fault


def test_a_row_of_shards_gives_their_records(ready: Output, tmp_path: Path) -> None:
    actor = ShardActor(make_order(ready, tmp_path, count=20))
    made, fault = call(actor, "[2, 0]")
    assert fault == ""
    assert [(r.index, r.count, r.attempt) for r in made] == [(2, 4, 1), (0, 8, 1)]
    assert not list((tmp_path / "attempts").glob("**/*.*"))


@pytest.fixture
def idle(ready: Output, tmp_path: Path) -> poison.IdleActor:
    """An actor without a model, to whose publishing and drawing a test may add."""
    return poison.IdleActor(make_order(ready, tmp_path, count=20))


def test_a_shard_is_prepared_and_published_beside_the_drawing_of_another(idle: poison.IdleActor) -> None:
    worker, drawing, prepared = idle._worker, threading.Event(), threading.Event()
    prepare, draw, publish = worker.prepare, worker.draw, worker.publish
    threads = set()

    def prepared_first(k: int, number: int = 1) -> Shard:
        shard = prepare(k, number)
        if k == 1:
            prepared.set()
        return shard

    def drawn(shard: Shard) -> None:
        threads.add(threading.current_thread().name)
        if shard.index == 1:
            drawing.set()
        assert shard.index != 0 or prepared.wait(30), "nothing is prepared while a shard is drawn"
        draw(shard)

    def published(shard: Shard) -> Record:
        assert shard.index != 0 or drawing.wait(30), "nothing is drawn while a shard is published"
        return publish(shard)

    worker.prepare, worker.draw, worker.publish = prepared_first, drawn, published  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as calls:
        answers = [calls.submit(call, idle, text) for text in ("[0, 2]", "[1]")]
        made = [record.index for answer in answers for record in answer.result(timeout=60)[0]]
    assert made == [0, 2, 1]
    assert threads == {"device_0"}, "the device is one thread's"


def test_a_shard_that_a_worker_has_died_over_is_made_alone(idle: poison.IdleActor) -> None:
    idle._attempts.store.create("attempts/aaaa/digits-000000.1-1", b"")
    worker, order = idle._worker, []
    draw, publish = worker.draw, worker._publish
    waiting = threading.Event()

    def drawn(shard: Shard) -> None:
        order.append(f"draw {shard.index}, number {shard.number}")
        assert shard.index != 0 or waiting.wait(30)
        draw(shard)

    def published(shard: Shard) -> Record:
        time.sleep(0.2)
        order.append(f"publish {shard.index}")
        return publish(shard)

    worker.draw, worker._publish = drawn, published  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as calls:
        first = calls.submit(call, idle, "[0]")
        while not order:
            time.sleep(0.01)
        second = calls.submit(call, idle, "[1]")
        time.sleep(0.2)
        waiting.set()
        assert [one.result(timeout=60)[1] for one in (first, second)] == ["", ""]
    assert order == ["draw 0, number 2", "publish 0", "draw 1, number 1", "publish 1"]


def test_a_model_that_cannot_be_loaded_is_a_value(ready: Output, tmp_path: Path) -> None:
    order = make_order(ready, tmp_path)
    (tmp_path / "conditions/features.parquet").write_bytes(b"cut")
    made, fault = call(ShardActor(order), "[0]")
    assert made == []
    assert isinstance(unpack(fault), errors.DataError)
    assert "features.parquet" in str(unpack(fault))


def test_a_fault_keeps_the_records_before_it(ready: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ShardActor(make_order(ready, tmp_path, count=20))
    (tmp_path / "data").mkdir()
    real_make = actor._make

    def make(k: int) -> Record:
        if k == 1:
            raise errors.StorageError("here", "no space left", "make room")
        return real_make(k)

    monkeypatch.setattr(actor, "_make", make)
    made, fault = call(actor, "[2, 1, 0]")
    assert [record.index for record in made] == [2]
    assert (type(unpack(fault)), str(unpack(fault))) == (errors.StorageError, "here: no space left; make room")


def test_what_nobody_expects_is_raised(ready: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ShardActor(make_order(ready, tmp_path))
    monkeypatch.setattr(actor, "_make", lambda k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(actor, "[0]")


def test_a_lost_device_ends_the_process(ready: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(actor_module.os, "_exit", ended.append)
    actor = ShardActor(make_order(ready, tmp_path))

    def fault(k: int) -> Record:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(actor, "_make", fault)
    with pytest.raises(RuntimeError):
        call(actor, "[0]")
    assert ended == [70]


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError, errors.StorageError, ClusterError])
def test_errors_survive_the_way_through_ray(kind: type[MimeoError]) -> None:
    error = kind("a.b", 'says "x"\nü', "fix it")
    back = unpack(pack(error))
    assert (type(back), back.args, back.exit_code) == (kind, error.args, kind.exit_code)
