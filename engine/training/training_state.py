"""Checkpoints of a training run: one file each, published whole, the last two kept, a torn one passed over."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

from engine.errors import DataError
from engine.storage import temporary
from engine.storage.store import Store

KEEP = 2
_STEP = re.compile(r"-(\d{9,})\.pt$")


def save(store: Store, prefix: str, step: int, state: Mapping[str, Any]) -> None:
    """Publish `PREFIX-000000123.pt` in one step and remove all but the newest two of the prefix.

    `state` holds tensors, numbers, text and containers of these only. A file of that step that is there already stays
    when it can be read (the state is a pure function of the step) and is replaced when it is torn.
    """
    import torch

    name = _name(prefix, step)
    if store.exists(name) and _read(store, name) is None:
        store.remove(name)
    if not store.exists(name):
        with temporary.folder("checkpoint") as folder:
            path = folder / "state.pt"
            torch.save(state, path)
            store.create(name, path)
    for old in _steps(store, prefix)[KEEP:]:
        store.remove(_name(prefix, old))


def load_latest(store: Store, prefix: str) -> tuple[int, Mapping[str, Any]] | None:
    """The newest checkpoint that can be read, as (step, state on the CPU), or None; a torn one is skipped with a
    warning."""
    for step in _steps(store, prefix):
        state = _read(store, _name(prefix, step))
        if state is not None:
            return step, state
        warnings.warn(f"{_name(prefix, step)} is torn and is passed over", RuntimeWarning, stacklevel=2)
    return None


def load(store: Store, prefix: str, step: int) -> Mapping[str, Any]:
    """The checkpoint of just this step; DataError when it is absent or torn."""
    state = _read(store, _name(prefix, step))
    if state is None:
        raise DataError(_name(prefix, step), "is torn", "remove it and run the same command again")
    return state


def remove_all(store: Store, prefix: str) -> None:
    """Remove every checkpoint of the prefix."""
    for step in _steps(store, prefix):
        store.remove(_name(prefix, step))


def _name(prefix: str, step: int) -> str:
    return f"{prefix}-{step:09d}.pt"


def _steps(store: Store, prefix: str) -> list[int]:
    """Steps that have a file, newest first."""
    found = (_STEP.search(entry.name) for entry in store.list(f"{prefix}-"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _read(store: Store, name: str) -> Mapping[str, Any] | None:
    import torch

    try:
        return torch.load(io.BytesIO(store.read(name)), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError):
        return None
