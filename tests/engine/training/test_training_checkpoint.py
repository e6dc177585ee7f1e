"""Training checkpoints: whole or absent, two kept, torn ones passed over, no code in them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import DataError
from engine.storage.store import open_store
from engine.training import training_state

PREFIX = "checkpoints/run"


def _state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "weights": {"w": torch.full((3,), float(step))},
        "losses": torch.arange(abs(step)),
        "name": "unet",
    }


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert training_state.load_latest(store, PREFIX) is None
    for step in (9, 10, 100, 1_000_000_000_0):
        training_state.save(store, PREFIX, step, _state(7))
    assert _names(tmp_path) == ["run-000000100.pt", "run-10000000000.pt"]
    found = training_state.load_latest(store, PREFIX)
    assert found is not None
    step, state = found
    assert step == 1_000_000_000_0
    assert torch.equal(state["weights"]["w"], torch.full((3,), 7.0))
    assert state["name"] == "unet"


def test_prefixes_do_not_mix(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (1, 2, 3):
        training_state.save(store, PREFIX, step, _state(step))
        training_state.save(store, f"{PREFIX}-other", step, _state(-step))
    found = training_state.load_latest(store, PREFIX)
    assert found is not None
    assert found[1]["step"] == 3
    training_state.remove_all(store, PREFIX)
    assert _names(tmp_path) == ["run-other-000000002.pt", "run-other-000000003.pt"]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros"])
def test_a_torn_one_is_passed_over_and_written_again(tmp_path: Path, damage: str) -> None:
    store = open_store(str(tmp_path))
    for step in (5, 6):
        training_state.save(store, PREFIX, step, _state(step))
    newest = tmp_path / "checkpoints" / "run-000000006.pt"
    data = newest.read_bytes()
    newest.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[damage])
    with pytest.warns(RuntimeWarning, match="run-000000006.pt is torn"):
        found = training_state.load_latest(store, PREFIX)
    assert found is not None
    assert found[0] == found[1]["step"] == 5
    with pytest.raises(DataError):
        training_state.load(store, PREFIX, 6)
    training_state.save(store, PREFIX, 6, _state(6))
    assert training_state.load(store, PREFIX, 6)["step"] == 6


def test_one_that_can_be_read_is_not_written_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    training_state.save(store, PREFIX, 6, _state(6))
    before = (tmp_path / "checkpoints" / "run-000000006.pt").stat()
    training_state.save(store, PREFIX, 6, _state(6))
    after = (tmp_path / "checkpoints" / "run-000000006.pt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return warnings.warn, ("code of the checkpoint has run",)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    training_state.save(store, PREFIX, 1, _state(1))
    store.create(f"{PREFIX}-000000002.pt", pickle.dumps(_Trap()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = training_state.load_latest(store, PREFIX)
    assert found is not None
    assert found[0] == 1
    assert not any("has run" in str(warning.message) for warning in seen)
