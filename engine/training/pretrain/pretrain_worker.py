"""What each Ray Train worker of the pretraining runs: its stages in turn, resumed where the newest checkpoint
stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import pyarrow as pa
import torch

from engine import output
from engine.cluster.board import Board
from engine.conditions.prompts import fill
from engine.conditions.table import Captions
from engine.diffusion.tiny.directory import Stack, normalise
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.images.image_reader import Reader
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training import setup, training_state
from engine.training.judge_model import AUGMENTATIONS
from engine.training.latent_cache import Cache
from engine.training.loop import Loop, Stage
from engine.training.pretrain import dit_stage, heldout, pixel_stage, publish_model, unet
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.denoiser import DenoiserStage
from engine.training.pretrain.encoder import EncoderStage
from engine.training.pretrain.pretrain_stage import Setting, TrainingSet
from engine.training.pretrain.publish_model import Finished
from engine.training.pretrain.vae import VaeStage, error
from engine.training.pretrain.views import Views
from engine.training.resume import resume
from engine.training.setup import Ended, Place
from engine.training.trainingresults import HeldOutCurve, HeldOutError

CHECKPOINTS = output.PRETRAIN_CHECKPOINTS
DENOISERS: dict[str, tuple[Any, Any]] = {
    "unet": (unet.build_cache, unet.UNetStage),
    "dit": (dit_stage.build_cache, dit_stage.DitStage),
    "pixel": (pixel_stage.build_cache, pixel_stage.PixelStage),
}


@dataclass(frozen=True)
class Job:
    """One pretraining: its recipe, where its results go, what it is made from, until when (`time.time()`) it may
    run."""

    spec: RunSpec
    store: Store
    made_from: Mapping[str, object]
    deadline: float | None = None
    board: Board | None = None


class Config(TypedDict):
    """What the workers are sent: the catalog's training split, and its captions."""

    job: Job
    rows: pa.Table
    captions: Captions


def train(config: Config) -> Ended:
    """The loop for `setup.run`."""
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
        self.finished: dict[str, Finished] = {}
        self._images = len(images)
        self._held: Cache | None = None
        self._resumed: Mapping[str, Any] | None = None
        pretrain = job.spec.pretrain
        kept, held = images, None
        if pretrain.held_out:
            ours, theirs = heldout.split(images.labels.cpu().numpy(), pretrain.held_out, job.spec.seed)
            kept, held = images.take(ours), images.take(theirs)
        views = Views(pretrain.views) if pretrain.views.probability else None
        self.setting = Setting(job.spec, place, kept, AUGMENTATIONS[pretrain.augment], views, held)
        self.tokenizer = train_tokenizer([*images.prompts, *images.class_prompts], job.spec.pretrain.text_length)

    def run(self) -> Ended:
        """Train what is left, publish from rank 0; gives {"done": bool, "message": str}."""
        self._resume()
        clip = ClipStage(self.setting, self.tokenizer)
        if not self._train(clip):
            return self._stopped(clip)
        encoder = EncoderStage(self.setting) if self.job.spec.pretrain.encoder else None
        if encoder and not self._train(encoder):
            return self._stopped(encoder)
        looks = encoder.model if encoder else None
        kind, vae = self.job.spec.pretrain.kind, None
        if kind != "pixel":
            stage = VaeStage(self.setting)
            if not self._train(stage):
                return self._stopped(stage)
            vae = stage.model
        build_cache, make = DENOISERS[kind]
        cache, factor = build_cache(self.setting, self.tokenizer, clip.model, vae, looks)
        if self.setting.held is not None:
            held = replace(self.setting, images=self.setting.held)
            self._held = build_cache(held, self.tokenizer, clip.model, vae, looks, factor)[0]
        denoiser = make(self.setting, cache, vae, factor)
        if not self._train(denoiser):
            return self._stopped(denoiser)
        if self.place.rank == 0:
            if vae is not None:
                vae.register_to_config(scaling_factor=factor)
            names = self.setting.images.class_names
            guide = getattr(denoiser, "guide", None)
            stack = Stack(self.tokenizer, clip.model, vae, denoiser.model, denoiser.scheduler, names, guide, looks)
            publish_model.publish(self.job.store, stack, self.finished, self.job.made_from, self._images)
        return {"done": True, "message": "model/ is whole"}

    def _train(self, stage: Stage) -> bool:
        """Bring a stage to its end, or to the end of the time (False)."""
        if stage.name not in self.finished:
            resumed = self._resumed if self._resumed and self._resumed["stage"] == stage.name else None
            loop = Loop(stage, self.place, None if resumed is None else resumed["loop"], compiled=self._compiled(stage))
            if not loop.run(
                checkpoint_every=self.job.spec.pretrain.checkpoint_every,
                save=lambda: self._save(stage, loop),
                out_of_time=lambda: self.job.deadline is not None and time.time() >= self.job.deadline,
                tell=lambda step, loss: self._tell(stage, step, loss),
            ):
                return False
            self.finished[stage.name] = {
                "held_out": self._finish(stage),
                "weights": stage.module.state_dict(),
                "losses": torch.tensor(loop.losses),
                "seconds": loop.seconds,
            }
        stage.module.load_state_dict(self.finished[stage.name]["weights"])
        stage.module.eval().requires_grad_(False)
        return True

    def _finish(self, stage: Stage) -> HeldOutCurve | HeldOutError | None:
        """Put a stage's result into its module; gives what held-out images say of it."""
        if isinstance(stage, DenoiserStage):
            return stage.finish(self._held)
        if isinstance(stage, VaeStage) and self.setting.held is not None:
            seen, unseen = (normalise(images.pixels) for images in (self.setting.images, self.setting.held))
            return {"train": error(stage.model, seen), "held": error(stage.model, unseen)}
        return None

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
            training_state.save(self.job.store, CHECKPOINTS, step, state)

    def _resume(self) -> None:
        """Go on from the newest checkpoint of the same inputs."""
        self._resumed = resume(self.job.store, CHECKPOINTS, self.job.made_from, self.place)
        if self._resumed is not None:
            self.finished = self._resumed["finished"]

    def _tell(self, stage: Stage, step: int, loss: float) -> None:
        if self.place.rank == 0 and self.job.board:
            self.job.board.update(f"pretrain {stage.name}", step, stage.steps, "steps", loss=loss)

    def _stopped(self, stage: Stage) -> Ended:
        return {
            "done": False,
            "message": f"pretraining stopped in stage {stage.name}; the same command goes on from there",
        }
