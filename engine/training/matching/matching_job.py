"""One fine-tune: what it is made from, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.cluster.board import Board
from engine.diffusion.checkpoint import Checkpoint
from engine.spec import RunSpec
from engine.spec.training import MatchSpec
from engine.storage.store import Store


@dataclass(frozen=True)
class Job:
    """One fine-tune: its recipe, its generator, where results go, what it is made from, until when (`time.time()`) it
    may run.

    `features` is the digest of the model whose features its MMD term compares, "" where it compares none.
    """

    spec: RunSpec
    store: Store
    checkpoint: Checkpoint
    made_from: Mapping[str, object]
    deadline: float | None = None
    board: Board | None = None
    features: str = ""

    @property
    def match(self) -> MatchSpec:
        """The recipe's section."""
        assert self.spec.match is not None
        return self.spec.match
