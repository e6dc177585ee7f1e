"""What each Ray Train worker of the pretraining runs: its stages in turn, resumed where the newest checkpoint stands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from engine.cluster.board import Board
from engine.conditions.prompts import fill
from engine.conditions.table import Captions
from engine.diffusion.tiny.directory import Stack
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.images.reader import Reader
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training import checkpoint, setup
from engine.training.judge_model import AUGMENTATIONS
from engine.training.loop import Loop, Stage
from engine.training.pretrain import dit, publish, unet
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.encoder import EncoderStage
from engine.training.pretrain.stage import Setting, TrainingSet
from engine.training.pretrain.vae import VaeStage
from engine.training.resume import resume
from engine.training.setup import Config, Place

CHECKPOINTS = "checkpoints/pretrain"
DENOISERS: dict[str, tuple[Any, Any]] = {
    "unet": (unet.build_cache, unet.UNetStage),
    "dit": (dit.build_cache, dit.DitStage),
}


@dataclass(frozen=True)
class Job:
    """One pretraining: its recipe, where its results go, what it is made from, until when (`time.time()`) it may run."""

    spec: RunSpec
    store: Store
    made_from: dict[str, Any]
    deadline: float | None = None
    board: Board | None = None


def train(config: Config) -> Config:
    """The loop for `setup.run`: config has `job`, `rows` (the catalog's training split) and `captions` of these."""
    place = setup.place()
    job, rows, captions = config["job"], config["rows"], config["captions"]
    return Training(job, place, training_set(job.spec, rows, captions, place.device)).run()


def training_set(spec: RunSpec, rows: pa.Table, captions: Captions, device: torch.device) -> TrainingSet:
    """Read the images of catalog rows; prompts are the recipe's template, filled."""
    template = spec.conditions.prompt
    return TrainingSet(
        torch.from_numpy(Reader(spec).pixels(rows)).to(device),
        torch.from_numpy(captions.labels).long().to(device),
        captions.prompts(template),
        tuple(fill(template, name, "") for name in captions.class_names),
        captions.class_names,
    )


class Training:
    """All stages over one set of images; every worker makes one."""

    def __init__(self, job: Job, place: Place, images: TrainingSet) -> None:
        self.job, self.place = job, place
        self.finished: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None
        self.setting = Setting(job.spec, place, images, AUGMENTATIONS[job.spec.pretrain.augment])
        self.tokenizer = train_tokenizer([*images.prompts, *images.class_prompts], job.spec.pretrain.text_length)

    def run(self) -> Config:
        """Train what is left, publish from rank 0; gives {"done": bool, "message": str}."""
        self._resume()
        clip = ClipStage(self.setting, self.tokenizer)
        if not self._train(clip):
            return self._stopped(clip)
        encoder = EncoderStage(self.setting) if self.job.spec.pretrain.encoder else None
        if encoder and not self._train(encoder):
            return self._stopped(encoder)
        vae = VaeStage(self.setting)
        if not self._train(vae):
            return self._stopped(vae)
        looks = encoder.model if encoder else None
        build_cache, make = DENOISERS[self.job.spec.pretrain.denoiser]
        cache, scaling_factor = build_cache(self.setting, self.tokenizer, clip.model, vae.model, looks)
        denoiser = make(self.setting, cache)
        if not self._train(denoiser):
            return self._stopped(denoiser)
        if self.place.rank == 0:
            vae.model.register_to_config(scaling_factor=scaling_factor)
            names = self.setting.images.class_names
            stack = Stack(self.tokenizer, clip.model, vae.model, denoiser.model, denoiser.scheduler, names, looks)
            publish.publish(self.job.store, stack, self.finished, self.job.made_from, len(self.setting.images))
        return {"done": True, "message": "model/ is whole"}

    def _train(self, stage: Stage) -> bool:
        """Bring a stage to its end, or to the end of the time (False)."""
        if stage.name not in self.finished:
            resumed = self._resumed if self._resumed and self._resumed["stage"] == stage.name else None
            loop = Loop(stage, self.place, resumed and resumed["loop"], compiled=self._compiled(stage))
            if not loop.run(
                checkpoint_every=self.job.spec.pretrain.checkpoint_every,
                save=lambda: self._save(stage, loop),
                out_of_time=lambda: self.job.deadline is not None and time.time() >= self.job.deadline,
                tell=lambda step, loss: self._tell(stage, step, loss),
            ):
                return False
            if stage.ema:
                stage.ema.copy_to(stage.module.parameters())
            self.finished[stage.name] = {
                "weights": stage.module.state_dict(),
                "losses": torch.tensor(loop.losses),
                "seconds": loop.seconds,
            }
        stage.module.load_state_dict(self.finished[stage.name]["weights"])
        stage.module.eval().requires_grad_(False)
        return True

    def _compiled(self, stage: Stage) -> bool:
        """Only the denoiser is worth the compiler's minutes."""
        return self.job.spec.resources.compile_training and stage.name in DENOISERS

    def _save(self, stage: Stage, loop: Loop) -> None:
        if self.place.rank == 0:
            step = loop.step + sum(len(done["losses"]) for done in self.finished.values())
            state = {
                "made_from": self.job.made_from,
                "finished": self.finished,
                "stage": stage.name,
                "loop": loop.state(),
            }
            checkpoint.save(self.job.store, CHECKPOINTS, step, state)

    def _resume(self) -> None:
        """Go on from the newest checkpoint of the same inputs."""
        self._resumed = resume(self.job.store, CHECKPOINTS, self.job.made_from, self.place)
        if self._resumed is not None:
            self.finished = self._resumed["finished"]

    def _tell(self, stage: Stage, step: int, loss: float) -> None:
        if self.place.rank == 0 and self.job.board:
            self.job.board.update(f"pretrain {stage.name}", step, stage.steps, "steps", loss=loss)

    def _stopped(self, stage: Stage) -> Config:
        return {
            "done": False,
            "message": f"pretraining stopped in stage {stage.name}; the same command goes on from there",
        }
