"""Finds the checkpoint that all workers of a training go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from engine.storage.store import Store
from engine.training import training_state
from engine.training.setup import Place


def resume(store: Store, prefix: str, made_from: Mapping[str, object], place: Place) -> Mapping[str, Any] | None:
    """The state of the newest whole checkpoint whose `made_from` is this one, None to begin anew; rank 0 says which.

    Checkpoints of other inputs are removed.
    """
    found = training_state.load_latest(store, prefix) if place.rank == 0 else None
    if found is not None and found[1]["made_from"] != made_from:
        training_state.remove_all(store, prefix)
        found = None
    if place.world_size > 1:
        word = torch.tensor([found[0] if found else -1], device=place.device)
        dist.broadcast(word, src=0)
        if place.rank > 0 and int(word) >= 0:
            found = int(word), training_state.load(store, prefix, int(word))
    return found[1] if found is not None else None
