"""Fine-tunes that are killed, stopped, diverge or change their number of workers end as an unbroken one does."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from engine.errors import DataError, StorageError
from engine.training.setup import Place
from tests.support.matching import Parts, lora_digest, match_spec, run_workers
from tests.support.outputs import Output
from tests.support.tiers import slow
from tests.support.training import CPU

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def parts(ready: Output) -> Parts:
    return Parts(ready, match_spec(ready.spec, mmd="kernel_latent", ema=0.9, sample_every=4))


@pytest.fixture(scope="module")
def unbroken(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert parts.matching(folder).run()["done"]
    return folder


def _results(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results/match.json").read_text())
    found.pop("seconds")
    return found


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("match-*.pt"))


def test_what_it_writes(parts: Parts, unbroken: Path) -> None:
    results = _results(unbroken)
    assert results["step"] == list(range(1, 9))
    assert all(len(results[name]) == len(results["phase_step"]) for name in ("denoising", "mmd", "levels"))
    facts = json.loads((unbroken / "match/mimeo.json").read_text())
    assert facts["base"] == parts.output.checkpoint.digest
    assert facts["match"]["mmd"] == "kernel_latent"
    assert facts["final_loss"] == results["loss"][-1]
    assert facts["files"] == {"pytorch_lora_weights.safetensors": lora_digest(unbroken)}
    strips = sorted((unbroken / "match").glob("samples-*.png"))
    assert [path.stem for path in strips] == ["samples-000000004", "samples-000000008"]
    assert Image.open(strips[0]).size == (16, 8)
    assert strips[0].read_bytes() != strips[1].read_bytes()


def test_it_learns_from_no_other_model_than_the_one_it_began_with(parts: Parts, tmp_path: Path) -> None:
    model = shutil.copytree(parts.output.checkpoint.path, tmp_path / "model")
    moved = replace(parts.output.checkpoint, place=str(model))
    weights = model / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(StorageError, match="is not the file that the run began with"):
        replace(parts, output=replace(parts.output, checkpoint=moved)).matching(tmp_path / "out")


def test_killed_three_times_it_ends_as_an_unbroken_one(parts: Parts, unbroken: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "parts.pkl"
    pickled.write_bytes(pickle.dumps(parts))
    command = [sys.executable, "-m", "tests.support.matching", str(pickled), str(tmp_path)]
    for newest in (3, 6):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(int(path.stem[-9:]) >= newest for path in _checkpoints(tmp_path)):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "match/mimeo.json").exists()
    assert parts.matching(tmp_path).run()["done"]
    assert _results(tmp_path) == _results(unbroken)
    assert lora_digest(tmp_path) == lora_digest(unbroken)


def test_stopped_by_the_time_limit_it_goes_on(parts: Parts, unbroken: Path, tmp_path: Path) -> None:
    runs = 0
    while not (out := parts.matching(tmp_path, deadline=time.time()).run())["done"]:
        runs += 1
        assert "same command goes on" in out["message"]
        assert runs < 10
    assert runs > 2
    assert _results(tmp_path) == _results(unbroken)


@slow
def test_compiled_it_learns_the_same(
    parts: Parts, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path / "cache"))
    resources = parts.spec.resources.model_copy(update={"compile_training": True})
    compiled = Parts(parts.output, parts.spec.model_copy(update={"resources": resources}))
    torch._dynamo.utils.counters.clear()
    assert compiled.matching(tmp_path).run()["done"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    found, plain = _results(tmp_path), _results(unbroken)
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert found["mmd"] == pytest.approx(plain["mmd"], rel=1e-2)


def _worker(rank: int, world: int, folder: str, parts: Parts, deadline: float | None) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous-{world}-{deadline}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    parts.matching(Path(folder), place=Place(rank, world, CPU), deadline=deadline).run()
    dist.destroy_process_group()


def test_another_number_of_workers_goes_on_with_the_same_losses(parts: Parts, unbroken: Path, tmp_path: Path) -> None:
    for world, deadline in ((2, 1.0), (4, 2.0), (2, None)):
        run_workers(_worker, (world, str(tmp_path), parts, deadline), world)
    one, others = _results(unbroken), _results(tmp_path)
    assert len(others["loss"]) == 8
    assert others["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert others["mmd"] == pytest.approx(one["mmd"], rel=1e-3)


def test_a_loss_that_is_not_finite_keeps_the_last_finite_checkpoint(
    parts: Parts, unbroken: Path, tmp_path: Path
) -> None:
    found = parts.matching(tmp_path)
    loss = found.stage.loss
    found.stage.loss = lambda module, step: loss(module, step) * (torch.nan if step >= 4 else 1.0)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="match, step 4"):
        found.run()
    assert [int(path.stem[-9:]) for path in _checkpoints(tmp_path)][-1] == 3
    assert parts.matching(tmp_path).run()["done"]
    assert lora_digest(tmp_path) == lora_digest(unbroken)


def test_accumulated_batches_are_one_step(ready: Output, tmp_path: Path) -> None:
    """Without an MMD term the mean over two micro-batches is that over both; the loop's loss says so."""
    found = Parts(ready, match_spec(ready.spec, mmd="none", accumulate=2, steps=2)).matching(tmp_path)
    with torch.no_grad():
        expected = [float(found.stage.loss(found.stage.module, part)) for part in (0, 1)]
    assert found.run()["done"]
    assert _results(tmp_path)["loss"][0] == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert _results(tmp_path)["steps"] == 2


def _scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What event files hold, by tag and step; each record is a length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_tensorboard_events_are_written_where_asked_for(ready: Output, tmp_path: Path) -> None:
    spec = match_spec(ready.spec, steps=3, samples=0, schedule="cosine")
    resources = spec.resources.model_copy(update={"tensorboard": True})
    Parts(ready, spec.model_copy(update={"resources": resources})).matching(tmp_path).run()
    found = _scalars(tmp_path / "logs/tensorboard")
    assert found["loss", 3] == pytest.approx(_results(tmp_path)["loss"][-1], rel=1e-6)
    assert found["learning_rate", 1] == pytest.approx(1e-2)
    assert any(tag.startswith("squared_error/") for tag, _ in found)


def test_gradient_checkpointing_changes_nothing(ready: Output, tmp_path: Path) -> None:
    losses = []
    for number, checkpointed in enumerate((False, True)):
        spec = match_spec(ready.spec, mmd="residual", gradient_checkpointing=checkpointed, steps=3, samples=0)
        Parts(ready, spec).matching(tmp_path / str(number)).run()
        losses.append(_results(tmp_path / str(number))["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_bfloat16_is_near_float32_and_trains_in_float32(ready: Output, tmp_path: Path) -> None:
    losses = []
    for number, dtype in enumerate(("float32", "bfloat16")):
        found = Parts(ready, match_spec(ready.spec, mmd="residual", dtype=dtype, steps=3)).matching(
            tmp_path / str(number)
        )
        assert {p.dtype for p in found.denoiser.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in found.denoiser.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
        found.run()
        losses.append(_results(tmp_path / str(number))["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
