"""The three stages in turn: killed, stopped and torn runs end with the weights of an unbroken one; two workers agree
with one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.errors import DataError
from engine.storage.store import open_store
from engine.training.loop import Stage
from engine.training.pretrain.pretrain_worker import Training
from engine.training.setup import Place
from tests.support.training import CPU, tiny_spec, training, weights

ROOT = Path(__file__).resolve().parents[4]
STEPS = {name: {"steps": 8} for name in ("clip", "vae", "unet")}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert training(folder, tiny_spec(**STEPS)).run()["done"]
    return folder


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("pretrain-*.pt"))


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, unbroken: Path) -> None:
    command = [sys.executable, "-m", "tests.support.training", str(tmp_path), "8"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(int(path.stem[-9:]) > 16 for path in _checkpoints(tmp_path)):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model" / "mimeo.json").exists()
    again = training(tmp_path, tiny_spec(**STEPS))
    assert again.run()["done"]
    assert weights(tmp_path) == weights(unbroken)
    curves = [json.loads((folder / "results/pretrain.json").read_text())["stages"] for folder in (tmp_path, unbroken)]
    assert [stage["loss"] for stage in curves[0].values()] == [stage["loss"] for stage in curves[1].values()]


def test_runs_stopped_by_the_time_limit_go_on(tmp_path: Path, unbroken: Path) -> None:
    runs = 0
    while not (out := training(tmp_path, tiny_spec(**STEPS), deadline=time.time()).run())["done"]:
        runs += 1
        assert "same command goes on" in out["message"]
        assert len(_checkpoints(tmp_path)) == min(runs, 2)
        assert runs < 30
    assert runs > 3
    assert weights(tmp_path) == weights(unbroken)


def test_it_goes_on_from_an_object_store_alone(tmp_path: Path, unbroken: Path, s3_url: str) -> None:
    while not training(s3_url, tiny_spec(**STEPS), deadline=time.time()).run()["done"]:
        pass
    store = open_store(s3_url)
    files = json.loads(store.read("model/mimeo.json"))["files"]
    assert files == json.loads((unbroken / "model/mimeo.json").read_text())["files"]
    assert all(hashlib.sha256(store.read(f"model/{name}")).hexdigest() == digest for name, digest in files.items())


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, unbroken: Path) -> None:
    for _ in range(6):
        training(tmp_path, tiny_spec(**STEPS), deadline=time.time()).run()
    newest = _checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(RuntimeWarning, match="torn"):
        assert training(tmp_path, tiny_spec(**STEPS)).run()["done"]
    assert weights(tmp_path) == weights(unbroken)


def test_what_an_interrupted_publication_left_is_replaced(tmp_path: Path, unbroken: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("model/vae/diffusion_pytorch_model.safetensors", b"half of another attempt")
    store.create("model/vae/leftover.safetensors", b"of an older version")
    training(tmp_path, tiny_spec(**STEPS)).run()
    assert weights(tmp_path) == weights(unbroken)
    facts = json.loads(store.read("model/mimeo.json"))
    present = {entry.name.removeprefix("model/") for entry in store.list("model/")}
    assert set(facts["files"]) == present - {"mimeo.json"}


def test_checkpoints_of_other_inputs_are_not_used(tmp_path: Path, unbroken: Path) -> None:
    other = training(tmp_path, tiny_spec(clip={"steps": 3}), deadline=time.time())
    object.__setattr__(other.job, "made_from", {"spec": "another"})
    other.run()
    assert _checkpoints(tmp_path)
    training(tmp_path, tiny_spec(**STEPS)).run()
    assert weights(tmp_path) == weights(unbroken)


def test_the_seed_changes_the_weights(tmp_path: Path, unbroken: Path) -> None:
    spec = tiny_spec(**STEPS)
    training(tmp_path, spec.model_copy(update={"seed": 8})).run()
    assert set(weights(tmp_path).values()).isdisjoint(weights(unbroken).values())


class _Breaks(Training):
    """A training whose U-Net loss is NaN from a step on, as after a blow-up."""

    def _train(self, stage: Stage) -> bool:
        if stage.name == "unet":
            loss = stage.loss
            stage.loss = lambda module, step: loss(module, step) * (torch.nan if step >= 5 else 1.0)  # type: ignore[method-assign]
        return super()._train(stage)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_checkpoint(tmp_path: Path, unbroken: Path) -> None:
    good = training(tmp_path, tiny_spec(**STEPS))
    with pytest.raises(DataError) as caught:
        _Breaks(good.job, good.place, good.setting.images).run()
    assert "unet, step 5" in str(caught.value)
    assert max(int(path.stem[-9:]) for path in _checkpoints(tmp_path)) == 16 + 3
    assert good.run()["done"]
    assert weights(tmp_path) == weights(unbroken)


def _worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    training(Path(folder), tiny_spec(**STEPS), place=Place(rank, world_size, CPU)).run()
    dist.destroy_process_group()


def test_two_workers_have_the_losses_of_one(tmp_path: Path, unbroken: Path) -> None:
    mp.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    one, two = (json.loads((folder / "results/pretrain.json").read_text())["stages"] for folder in (unbroken, tmp_path))
    for name in ("clip", "vae", "unet"):
        assert len(one[name]["loss"]) == 8
        assert two[name]["loss"] == pytest.approx(one[name]["loss"], rel=2e-3), name
