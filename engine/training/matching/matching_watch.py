"""What a fine-tune shows while it runs: losses by noise level, validation samples, and TensorBoard events where asked
for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine import output
from engine.cluster.board import Board
from engine.conditions.table import Conditions
from engine.diffusion.sampler import Request, Sampler
from engine.seeds import derive
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training.matching.matching_stage import MatchStage
from engine.training.setup import Place

SAMPLES = output.MATCH_SAMPLES
TENSORBOARD = "logs/tensorboard"
GREY = 128


class Watch:
    """Rank 0's eyes; on other ranks nothing happens."""

    def __init__(
        self,
        spec: RunSpec,
        store: Store,
        pipeline: Any,
        denoiser: Any,
        conditions: Conditions,
        place: Place,
        board: Board | None,
    ) -> None:
        assert spec.match is not None
        self._spec, self._match, self._store = spec, spec.match, store
        self._pipeline, self._denoiser = pipeline, denoiser
        self._conditions, self._place, self._board = conditions, place, board
        self._writer: Any = None
        folder = store.local(TENSORBOARD)
        if place.rank == 0 and spec.resources.tensorboard and folder is not None:
            from tensorboardX import SummaryWriter  # which comes with Ray

            self._writer = SummaryWriter(str(folder))

    def tell(self, stage: MatchStage, step: int, loss: float) -> None:
        """Called about every second, and at checkpoints."""
        if self._place.rank != 0:
            return
        levels = stage.by_level()
        if self._board:
            ends = {name: value for name, value in (("clean", levels[0]), ("noisy", levels[-1])) if value is not None}
            self._board.update("match", step, stage.steps, "steps", loss=loss, **ends)
        if self._writer:
            self._writer.add_scalar("loss", loss, step)
            self._writer.add_scalar("learning_rate", stage.lr(step - 1), step)
            for number, value in enumerate(levels):
                if value is not None:
                    self._writer.add_scalar(f"squared_error/noise_level_{number}", value, step)
        every = self._match.sample_every
        if every is not None and step % every == 0 and step < stage.steps:
            self.samples(step)

    def close(self) -> None:
        """Write out what is not written yet."""
        if self._writer:
            self._writer.close()

    def samples(self, step: int) -> None:
        """Draw the validation samples with the weights as they are and keep them as one strip:
        match/samples-STEP.png."""
        if not self._match.samples:
            return
        training, generate = self._denoiser.training, self._spec.generate.model_copy(update={"strength": 1.0})
        self._denoiser.eval()
        dtype = getattr(torch, self._match.dtype)
        with torch.autocast(self._place.device.type, dtype=dtype, enabled=dtype != torch.float32):
            drawn = Sampler(self._pipeline, generate).draw(self._requests())
        self._denoiser.train(training)
        side = self._spec.images.size
        grey = np.full((side, side, 3), GREY, np.uint8)
        buffer = io.BytesIO()
        strip = np.concatenate([grey if image.pixels is None else image.pixels for image in drawn], axis=1)
        Image.fromarray(strip).save(buffer, "PNG")
        self._store.replace(f"{SAMPLES}-{step:09d}.png", buffer.getvalue())

    def _requests(self) -> list[Request]:
        """The first image of each class, then the second of each: prompt, class and feature as in the training."""
        conditions, own = self._conditions, self._match.visual_token != "none"
        seen: dict[int, int] = {}
        order = []
        for row, label in enumerate(conditions.labels.tolist()):
            seen[label] = seen.get(label, 0) + 1
            order.append((seen[label], label, row))
        return [
            Request(
                prompt=conditions.prompts[row],
                label=conditions.class_number(label),
                seed=derive(self._spec.seed, "match", "sample", number),
                token=conditions.features[row] if own else None,
            )
            for number, (_, label, row) in enumerate(sorted(order)[: self._match.samples])
        ]
